"""What is done to the meshes, and what is measured of it: one function a scenario, one dictionary of figures a mesh.

Not here: processes (meshes.py), their network (world.py) and the table (report.py).

Where meshes are compared, each repetition is done to one of them and then to the next, so that whatever else the
machine does falls on all. Where time is spent waiting for false alarms, all are treated at once.
"""

import contextlib
import os
import pathlib
import re
import signal
import statistics
import sys
import time

# Longer than anything may take; whoever has not heard by then has missed it.
MISSED_S = 30
WHOLE_S = 60
SERF_WHOLE_S = 240
# Between two lines that say how a long wait goes.
PROGRESS_S = 60


def say(words):
    print(words, file=sys.stderr, flush=True)


def spread(values):
    """Median, 99th percentile and largest, rounded to milliseconds."""
    if not values:
        return None
    ordered = sorted(values)
    at = min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))
    told = {"median": statistics.median(ordered), "p99": ordered[at], "max": ordered[-1], "count": len(ordered)}
    return {key: round(value, 4) for key, value in told.items()}


def is_down(subject):
    return lambda said: said.what == "node" and said.subject == subject and said.fields["state"] in ("down", "left")


def is_state(subject, state):
    return lambda said: said.what == "node" and said.subject == subject and said.fields["state"] == state


def until_whole(mesh, within=WHOLE_S):
    mesh.until_whole(range(1, mesh.hosts + 1), SERF_WHOLE_S if mesh.kind == "serf" else within)


def take_turns(meshes, rounds, act):
    """`act(mesh, number)` for each mesh in turns; Serf's are fewer where it takes long."""
    for number in range(rounds):
        for mesh in meshes:
            act(mesh, number)


# ---- how fast -------------------------------------------------------------------------------------------------------


def crash(meshes, options):
    seen = {mesh: {"first": [], "last": [], "missed": 0} for mesh in meshes}

    def act(mesh, number):
        victim = mesh.hosts - number % (mesh.hosts - 8)
        others = [n for n in range(1, mesh.hosts + 1) if n != victim]
        begun = mesh.kill(victim)
        told = mesh.first_told(is_down(victim), others, begun, MISSED_S)
        spans = [at - begun for at in told.values()]
        figures = seen[mesh]
        figures["missed"] += len(others) - len(spans)
        if spans:
            figures["first"].append(min(spans))
            figures["last"].append(max(spans))
            say(f"  crash {number + 1}: {mesh.title}: first {min(spans):.2f} s, last {max(spans):.2f} s")
        mesh.start(victim)
        until_whole(mesh)

    take_turns(meshes, options.rounds or 10, act)
    return {m.title: {"first_s": spread(f["first"]), "last_s": spread(f["last"]), "missed": f["missed"]} for m, f in seen.items()}


def change(meshes, options):
    """From the change to the last node that knows, by kind and over all."""
    seen = {mesh: {} for mesh in meshes}
    rounds = options.rounds or 100

    def act(mesh, number):
        # A third for Serf, whose agents need longer, is plenty for a median.
        if mesh.kind == "serf" and number % 3:
            return
        kind, owner, begun, matches, undo = mesh.change(number)
        others = [n for n in range(1, mesh.hosts + 1) if n != owner]
        told = mesh.first_told(matches, others, begun, MISSED_S)
        spans = [at - begun for at in told.values()]
        figures = seen[mesh].setdefault(kind, {"last": [], "missed": 0})
        figures["missed"] += len(others) - len(spans)
        if spans:
            figures["last"].append(max(spans))
        undo()

    take_turns(meshes, rounds, act)
    result = {}
    for mesh, kinds in seen.items():
        every = [span for figures in kinds.values() for span in figures["last"]]
        result[mesh.title] = {
            "last_s": spread(every),
            "missed": sum(figures["missed"] for figures in kinds.values()),
            "by_kind": {kind: spread(figures["last"]) for kind, figures in kinds.items()},
        }
        if every:
            say(f"  change: {mesh.title}: {len(every)} changes, last node {statistics.median(every):.3f} s in the median")
    return result


def join(meshes, options):
    """One host more: from its process's start until all know it, and until it knows all and is ready."""
    seen = {mesh: {"known": [], "ready": [], "knows": [], "missed": 0} for mesh in meshes}

    def act(mesh, number):
        guest, others = mesh.hosts + 1, list(range(1, mesh.hosts + 1))
        mesh.forget(guest)
        begun = mesh.start(guest)
        told = mesh.first_told(is_state(guest, "alive"), others, begun, MISSED_S)
        knows_all = lambda: all(mesh.sees(guest, n) == "alive" for n in others)
        mesh.ears.wait(knows_all, MISSED_S)
        figures = seen[mesh]
        if len(told) == len(others) and knows_all():
            figures["known"].append(max(told.values()) - begun)
            knows = max(mesh.view[guest][n][1] for n in others) - begun
            ready = mesh.first_told(lambda said: said.what == "ready", [guest], begun, MISSED_S if mesh.kind == "starling" else 0)
            figures["ready"] += [at - begun for at in ready.values()]
            offers = [said.time - begun for said in mesh.offers[guest].values()]
            figures["knows"].append(max([knows] + offers))
        else:
            figures["missed"] += 1
            say(f"  join {number + 1}: {mesh.title}: the guest is not known to all, or does not know all, after {MISSED_S} s")
        left = mesh.leave(guest)
        mesh.first_told(lambda said: said.what == "node" and said.subject == guest and said.fields["state"] in ("left", "down"), others, left, MISSED_S)
        mesh.await_end(guest)

    take_turns(meshes, options.rounds or 10, act)
    for mesh, figures in seen.items():
        if figures["known"]:
            say(f"  join: {mesh.title}: known by all in {statistics.median(figures['known']):.3f} s in the median")
    return {
        m.title: {
            "known_by_all_s": spread(f["known"]),
            "ready_s": spread(f["ready"]),
            "knows_all_s": spread(f["knows"]),
            "missed": f["missed"],
        }
        for m, f in seen.items()
    }


def leave(meshes, options):
    seen = {mesh: {"last": [], "missed": 0} for mesh in meshes}

    def act(mesh, number):
        goer = mesh.hosts - number % (mesh.hosts - 8)
        others = [n for n in range(1, mesh.hosts + 1) if n != goer]
        begun = mesh.leave(goer)
        told = mesh.first_told(is_state(goer, "left"), others, begun, MISSED_S)
        figures = seen[mesh]
        figures["missed"] += len(others) - len(told)
        if told:
            figures["last"].append(max(told.values()) - begun)
        mesh.await_end(goer)
        mesh.start(goer)
        until_whole(mesh)

    take_turns(meshes, options.rounds or 10, act)
    for mesh, figures in seen.items():
        if figures["last"]:
            say(f"  leave: {mesh.title}: known to the last in {statistics.median(figures['last']):.3f} s in the median")
    return {m.title: {"last_s": spread(f["last"]), "missed": f["missed"]} for m, f in seen.items()}


def start(meshes, options):
    """All killed, then all started at once, until all know all (offers included)."""
    seen = {mesh: [] for mesh in meshes}

    def act(mesh, number):
        hosts = range(1, mesh.hosts + 1)
        for n in hosts:
            if n in mesh.children:
                mesh.kill(n)
            mesh.forget(n)
        begun = mesh.start(1)
        for n in list(hosts)[1:]:
            mesh.start(n)
        until_whole(mesh)
        seen[mesh].append(mesh.whole_since(hosts) - begun)
        say(f"  start {number + 1}: {mesh.title}: all know all after {seen[mesh][-1]:.2f} s")

    take_turns(meshes, options.rounds or 3, act)
    return {mesh.title: {"whole_s": spread(spans)} for mesh, spans in seen.items()}


# ---- how dear -------------------------------------------------------------------------------------------------------


def cpu_s(pid):
    """What all threads of a process have run so far, as the kernel's scheduler counted it."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory_kib(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return {"rss": found["Rss"], "pss": found["Pss"], "private": found["Private_Clean"] + found["Private_Dirty"]}


def idle(meshes, options):
    """Bytes, CPU and memory of a mesh that nobody disturbs."""
    settle, span = options.settle, options.seconds
    say(f"  idle: {settle} s to settle, {span} s measured")
    time.sleep(settle)
    own_bytes = lambda mesh: [gossip_bytes(mesh.metrics(n)) for n in sorted(mesh.children)] if mesh.kind == "starling" else []
    pids = {mesh: [mesh.children[n].pid for n in range(1, mesh.hosts + 1)] for mesh in meshes}
    before = {mesh: (mesh.world.bytes_seen(), own_bytes(mesh), [cpu_s(pid) for pid in pids[mesh]], time.time()) for mesh in meshes}
    time.sleep(span)
    result = {}
    for mesh in meshes:
        wire, own, cpu, since = before[mesh]
        wire_now, cpu_now, took = mesh.world.bytes_seen(), [cpu_s(pid) for pid in pids[mesh]], time.time() - since
        own_now = own_bytes(mesh)
        per_node = {}
        for protocol in ("udp", "tcp"):
            delta = {key: wire_now[protocol][key] - wire[protocol][key] for key in ("packets", "bytes", "payload")}
            per_node[protocol] = {key: round(value / mesh.hosts / took, 1) for key, value in delta.items()}
        memory = [memory_kib(pid) for pid in pids[mesh]]
        result[mesh.title] = {
            "sent_per_node_per_s": per_node,
            "payload_b_per_s": round(per_node["udp"]["payload"] + per_node["tcp"]["payload"], 1),
            "with_ip_heads_b_per_s": round(per_node["udp"]["bytes"] + per_node["tcp"]["bytes"], 1),
            "core_share": round(sum(b - a for a, b in zip(cpu, cpu_now)) / took / mesh.hosts, 6),
            "memory_kib": {key: statistics.median(row[key] for row in memory) for key in ("rss", "pss", "private")},
        }
        if own:
            told = [{key: b[key] - a[key] for key in a} for a, b in zip(own, own_now)]
            totals = {key: round(sum(row[key] for row in told) / mesh.hosts / took, 1) for key in told[0]}
            result[mesh.title]["own_count_b_per_s"] = totals
    for mesh in meshes:
        if mesh.kind == "starling":
            alone, cpu_alone = beside(mesh, span=min(30, span))
            figures = result[mesh.title]
            figures["alone_kib"] = alone
            figures["mesh_adds_kib"] = {key: figures["memory_kib"][key] - alone[key] for key in alone}
            figures["core_share_alone"] = cpu_alone
    return result


def gossip_bytes(metrics):
    """What a sidecar itself says it sent: datagrams, and streams where it counts them."""
    pick = lambda name: sum(value for key, value in metrics.items() if key.startswith(name) and 'direction="out"' in key)
    return {"udp": pick("starling_gossip_bytes_total"), "tcp": pick("starling_gossip_stream_bytes_total")}


def beside(mesh, span):
    """Memory and CPU of the same sidecar with the same configuration, but alone: what is more than that is the mesh's."""
    guest = mesh.hosts + 1
    seeds, mesh.seeds = mesh.seeds, lambda n: []
    mesh.forget(guest)
    mesh.start(guest)
    mesh.seeds = seeds
    mesh.first_told(lambda said: said.what == "ready", [guest], 0, MISSED_S)
    pid = mesh.children[guest].pid
    time.sleep(5)
    cpu = cpu_s(pid)
    time.sleep(span)
    told = memory_kib(pid), round((cpu_s(pid) - cpu) / span, 6)
    mesh.kill(guest)
    return told


# ---- how right ------------------------------------------------------------------------------------------------------


def alarms(meshes, since, excused=()):
    """Who was wronged between `since` and now, with what else was told meanwhile."""
    result = {}
    for mesh in meshes:
        healthy = [n for n in range(1, mesh.hosts + 1) if n not in excused]
        wronged = mesh.wronged(since, time.time(), healthy)
        result[mesh.title] = {
            "false_downs": len(wronged),
            "wronged_hosts": len({subject for _, subject in wronged}),
            "who": [f"host-{a} about host-{b}" for a, b in wronged[:10]],
            "suspicions_told": mesh.count("node", "suspect", since),
            "warnings": warnings(mesh, since),
        }
    return result


def warnings(mesh, since):
    """The sidecars' own warnings, counted by their first words."""
    counts = {}
    for said in mesh.said:
        if said.what == "warning" and said.time >= since:
            words = " ".join(said.fields["line"].split()[:6])
            counts[words] = counts.get(words, 0) + 1
    return counts


def tell_alarms(name, result):
    for title, figures in result.items():
        say(f"  {name}: {title}: {figures['false_downs']} false downs, {figures['suspicions_told']} suspicions told")
    return result


def sit(name, meshes, minutes):
    """Lets so many minutes pass, with a line each minute, and tells who was wronged meanwhile."""
    since = time.time()
    while (left := since + minutes * 60 - time.time()) > 0:
        time.sleep(min(left, PROGRESS_S))
        told = "; ".join(f"{title}: {f['false_downs']} false downs" for title, f in alarms(meshes, since).items())
        say(f"  {name}: {(time.time() - since) / 60:.0f} of {minutes:g} min: {told} (load average {os.getloadavg()[0]:.1f})")
    return alarms(meshes, since)


def quiet(meshes, options):
    return tell_alarms("quiet", sit("quiet", meshes, options.minutes or 20))


def loss(meshes, options):
    with contextlib.ExitStack() as stack:
        for mesh in meshes:
            stack.enter_context(mesh.world.loss(options.percent))
        result = sit("loss", meshes, options.minutes or 10)
    for mesh in meshes:
        until_whole(mesh)
    return tell_alarms("loss", result)


def stall(meshes, options):
    """Four hosts are stopped for 16 s and woken again, other ones each time. They may be told down while they are
    stopped; nobody else may, and they must be back soon after."""
    since, back = time.time(), {mesh: [] for mesh in meshes}
    late = {mesh: [] for mesh in meshes}
    excused_at = []
    for number in range(options.rounds or 6):
        size = max(1, meshes[0].hosts // 16)
        stopped = [1 + (number * size + k) % meshes[0].hosts for k in range(size)]
        begun = time.time()
        for mesh in meshes:
            mesh.signal(stopped, signal.SIGSTOP)
        time.sleep(16)
        for mesh in meshes:
            mesh.signal(stopped, signal.SIGCONT)
        woken = time.time()
        for mesh in meshes:
            until_whole(mesh)
            back[mesh].append(max(0, mesh.whole_since(range(1, mesh.hosts + 1)) - woken))
        excused_at.append((begun, time.time(), stopped, woken))
    result = {}
    for mesh in meshes:
        wronged = []
        for begun, ended, stopped, woken in excused_at:
            healthy = [n for n in range(1, mesh.hosts + 1) if n not in stopped]
            wronged += mesh.wronged(begun, ended, healthy)
            # A second after it woke, a host has said that it lives.
            late[mesh] += mesh.wronged(woken + 1, ended, stopped)
        result[mesh.title] = {
            "false_downs": len(wronged),
            "who": [f"host-{a} about host-{b}" for a, b in wronged[:10]],
            "woken_told_down_later_than_1_s": len(late[mesh]),
            "suspicions_told": mesh.count("node", "suspect", since),
            "whole_again_s": spread(back[mesh]),
            "warnings": warnings(mesh, since),
        }
    return tell_alarms("stall", result)


def deaf(meshes, options):
    """One host gets no UDP any more (it must not be told down: TCP reaches it), then nothing at all (it may be)."""
    return cut_off(meshes, options, "deaf", lambda world: world.deaf)


def mute(meshes, options):
    """One host sends no UDP any more (it must not be told down: TCP goes both ways), then nothing at all (it may be)."""
    return cut_off(meshes, options, "mute", lambda world: world.mute)


def cut_off(meshes, options, name, cut):
    span, size, result = (options.minutes or 1) * 60, meshes[0].hosts, {}
    victim = size // 2
    for part, protocol, excused in ((f"{name}_udp", "udp", ()), (name, None, (victim,))):
        since = time.time()
        with contextlib.ExitStack() as stack:
            for mesh in meshes:
                stack.enter_context(cut(mesh.world)(victim, protocol))
            time.sleep(span)
            told = alarms(meshes, since, excused)
            for mesh in meshes:
                judged = {b for a, b in mesh.wronged(since, time.time(), range(1, size + 1)) if a == victim}
                told[mesh.title]["told_down_by_the_one_cut_off"] = len(judged)
        healed = time.time()
        for mesh in meshes:
            until_whole(mesh)
            whole = mesh.whole_since(range(1, size + 1)) - healed
            told[mesh.title]["whole_again_s"] = round(max(0, whole), 3)
        result[part] = tell_alarms(part, told)
    return result


def partition(meshes, options):
    """Half and half for 60 s. Meanwhile one side withdraws an offer and the other changes one."""
    size = meshes[0].hosts
    half = size // 2
    ones, others = range(1, half + 1), range(half + 1, size + 1)
    # Neither is one whose application is checked or who is a seed.
    withdrawn, changed = half - 1, size - 1
    everyone = range(1, size + 1)
    result = {}
    with contextlib.ExitStack() as stack:
        for mesh in meshes:
            stack.enter_context(mesh.world.partition(ones, others))
        begun = time.time()
        apart = {}
        for mesh in meshes:
            if mesh.kind == "starling":
                mesh.configure(withdrawn, offers=False)
                mesh.ask(withdrawn, "POST", "/v1/reload")
                mesh.configure(changed, weight=901)
                mesh.ask(changed, "POST", "/v1/reload")
        time.sleep(max(0, 60 - (time.time() - begun)))
        for mesh in meshes:
            apart[mesh] = sum(mesh.sees(a, b) == "down" for a in ones for b in others)
    healed = time.time()
    for mesh in meshes:
        figures = result[mesh.title] = {"told_down_across": apart[mesh], "of": len(ones) * len(others)}
        if not mesh.ears.wait(lambda: mesh.all_meet(everyone), SERF_WHOLE_S):
            figures["whole_s"] = None
            continue
        figures["whole_s"] = round(mesh.whole_since(everyone) - healed, 3)
        if mesh.kind == "starling":
            agrees = lambda: all(offers_agree(mesh, n, withdrawn, changed) for n in everyone)
            agreed = mesh.ears.wait(agrees, WHOLE_S)
            figures["records_agree_s"] = round(max(0, time.time() - healed), 3) if agreed else None
            figures["records_wrong"] = [n for n in everyone if not offers_agree(mesh, n, withdrawn, changed)][:5]
            revived = [s for s in mesh.said if s.what == "offer" and s.subject == withdrawn and s.time > healed]
            figures["revived"] = sum(said.fields["state"] != "withdrawn" for said in revived if said.observer in ones)
            mesh.configure(withdrawn)
            mesh.ask(withdrawn, "POST", "/v1/reload")
        say(f"  partition: {mesh.title}: whole {figures['whole_s']} s after it healed")
    for mesh in meshes:
        until_whole(mesh)
    return result


def offers_agree(mesh, observer, withdrawn, changed):
    wanted = {n for n in range(1, mesh.hosts + 1) if n != withdrawn}
    told = mesh.offers[observer].get(f"shop-{changed}")
    # Guests that left are remembered for a while, which is right.
    there = {n for n in mesh.offering(observer) if n <= mesh.hosts}
    return there == wanted and told is not None and told.fields.get("weight") == "901"
