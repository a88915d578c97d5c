"""The rows of the table: what is asked of whom, what it may cost, and how it is measured.

Not here: rounds and what is counted in them (measure.py), the proxies' configurations (peers.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field

import backends
import lab
import loads
import measure
import peers

MESH_WITHIN_S = 20
# Four backends for the rows about a slow and a killed one: three answer after this many milliseconds.
DELAY_MS, SLOW_MS = 1, 20
RATE_OF_FOUR = 1000
# A direct call slower than this says that the machine cannot bear the rate; below the least rate nothing is told.
DIRECT_P99_MS_MAX, RATE_MIN = 20, 200
HTTP2_CONNECTIONS, HTTP2_STREAMS = 4, 100


@dataclass
class Line:
    """One line of the table. A target is ("haproxy", 0.95): at most so much of that one's; or ("most", 4): at most so
    much."""

    title: str
    key: str
    digits: int = 1
    targets: list = field(default_factory=list)
    factor: float = 1.0


@dataclass
class Row:
    name: str
    title: str
    lines: list
    measure: object
    needs: tuple = ()
    # Ways of a peer that only this row tells apart.
    variants: tuple = ()
    # The load is as fast as it can.
    saturating: bool = False


SATURATED = [
    Line("requests per second", "rate", 0),
    Line("p50, ms", "p50_ms", 2),
    Line("p99, ms", "p99_ms", 2),
    Line("p99.9, ms", "p999_ms", 2),
]


def cost(*targets, more=()):
    return [Line("CPU per request, µs", "cpu_us", 1, list(targets)), *more]


# ---- loads as fast as they can --------------------------------------------------------------------------------------


def at_full_speed(front, back, load, direct=False):
    """Every proxy in turn before both backends, as fast as the load can. `load`: (bench, target, seconds) → figures.
    `direct`: the load speaks what a backend does, so each round also has one without a proxy."""

    def act(bench, row):
        words, options = {}, bench.options
        why = bench.backends.lacks(back)
        if why:
            return {}, {"all": why}
        shape = peers.Shape(front, back, bench.backends.addresses(back), bench.place)
        children = bench.start(row, shape, words)
        bench.prove(children, shape)
        targets = {name: child.target for name, child in children.items()}
        if direct:
            targets["direct"] = shape.endpoints[0]
        once = lambda name: measure.one_round(
            name, children.get(name), lambda: load(bench, targets[name], options.seconds), bench.cores
        )
        seen = measure.in_turns(list(targets), once, options.rounds, warm=lambda name: load(bench, targets[name], 1))
        bench.processes.end(list(children.values()))
        if direct:
            alone = measure.summary(seen.pop("direct"))
            words["note"] = f"without a proxy, one backend: {alone['rate']['median']:.0f} requests/s, {milliseconds(alone)}"
        return seen, words

    return act


def milliseconds(alone):
    told = " / ".join(f"{alone[key]['median']:.2f}" for key in ("p50_ms", "p99_ms", "p999_ms"))
    return f"{told} ms (p50 / p99 / p99.9)"


def by_wrk(close=False):
    def load(bench, target, seconds):
        options, program = bench.options, bench.programs["wrk"]
        small = bench.backends.small
        figures = loads.wrk(program, bench.place, target, small, options.clients, seconds, bench.load_cores, close)
        whole(target, figures)
        return figures

    return load


def by_h2load(bench, target, seconds):
    program, small = bench.programs["h2load"], bench.backends.small
    figures = loads.h2load(program, bench.place, target, small, HTTP2_CONNECTIONS, HTTP2_STREAMS, seconds, bench.load_cores)
    whole(target, figures)
    return figures


def whole(target, figures):
    """Every answer was as long as it should be (wrk counts heads too)."""
    if figures["bytes"] < figures["requests"] * backends.SMALL_BYTES:
        sys.exit(f"{target} gave {figures['requests']} answers and only {figures['bytes']} bytes")


def by_downloads(name, connections):
    def load(bench, target, seconds):
        path = bench.backends.body(name)
        wanted = bench.backends.sums.get(name)
        if wanted and (target, name) not in bench.proven:
            if loads.sha256_of(target, path) != (200, wanted):
                sys.exit(f"{target} changed the body of {path}")
            bench.proven.add((target, name))
        return loads.downloads(target, path, connections, seconds)

    return load


# ---- a fixed rate ---------------------------------------------------------------------------------------------------


def open_loop(bench, row):
    """Also a direct call each round, so that what a proxy adds is told against the same moment."""
    words, options = {}, bench.options
    shape = peers.Shape("http1", "http1", bench.backends.addresses("http1"), bench.place)
    children = bench.start(row, shape, words)
    bench.prove(children, shape)
    direct, small = shape.endpoints[0], bench.backends.small
    rate = bearable_rate(bench, direct)
    targets = {"direct": direct} | {name: child.target for name, child in children.items()}

    def load(name, seconds):
        return loads.caller(bench.programs["caller"], targets[name], small, rate, seconds, bench.load_cores)

    act = lambda name: measure.one_round(name, children.get(name), lambda: load(name, options.seconds), bench.cores)
    seen = measure.in_turns(list(targets), act, options.rounds, warm=lambda name: load(name, 1))
    bench.processes.end(list(children.values()))
    for name in children:
        for figures, alone in zip(seen[name], seen["direct"]):
            for key in ("p50", "p99", "p999"):
                figures[f"{key}_added_us"] = (figures[f"{key}_ms"] - alone[f"{key}_ms"]) * 1000
    alone = measure.summary(seen.pop("direct"))
    words["note"] = f"{rate} requests/s; a direct call took {milliseconds(alone)}"
    return seen, words


def bearable_rate(bench, direct):
    """The rate asked for, or the half, quarter … of it that load and backends bear without a proxy."""
    rate, small = bench.options.rate, bench.backends.small
    while rate > RATE_MIN:
        told = loads.caller(bench.programs["caller"], direct, small, rate, 1, bench.load_cores)
        if told["p99_ms"] <= DIRECT_P99_MS_MAX and not told["failed"]:
            break
        lab.say(f"  {rate} requests/s are too many here even without a proxy (p99 {told['p99_ms']:.1f} ms): half of it")
        rate //= 2
    return rate


# ---- memory ---------------------------------------------------------------------------------------------------------


def idle(bench, row):
    """Fresh proxies each round: memory once grown is found again by the next crowd."""
    words, count = {}, bench.options.idle
    loads.raise_limit(count + 1024)
    shape = peers.Shape("http1", "http1", bench.backends.addresses("http1"), bench.place, clients=count + 1000)

    names = [name for name in bench.options.peers if not note_lack(name, shape, bench, words)]

    def act(name):
        child = peers.start(bench.processes, name, bench.programs, shape, bench.net, bench.cores)
        held = []
        try:
            held += [loads.settled(bench.net, number, child.target) for number in range(100)]
            before = lab.memory_kib(child.pid)["rss_kib"]
            held += [loads.settled(bench.net, number, child.target) for number in range(100, count + 100)]
            time.sleep(1)
            after = lab.memory_kib(child.pid)["rss_kib"]
            figures = {"kib_each": (after - before) / count, "rss_mib": after / 1024, "failed": len(held) - loads.alive(held)}
        finally:
            for connection in held:
                connection.close()
            bench.processes.end([child])
        lab.say(f"  {name:9}  {figures['kib_each']:.2f} KiB each, {figures['rss_mib']:.1f} MiB in all, {figures['failed']} closed")
        return figures

    # Each opens thousands of connections, so two rounds must do.
    return measure.in_turns(names, act, min(2, bench.options.rounds)), words


def note_lack(name, shape, bench, words):
    why = peers.lacks(name, shape, bench.programs)
    if why:
        words[name] = why
    return why


def at_start(bench, row):
    """Resident memory of what was just started; Starling as one of three sidecars that have met."""
    words, settle = {}, bench.options.settle
    shape = peers.Shape("http1", "http1", bench.backends.addresses("http1"), bench.place)
    names = [name for name in bench.options.peers if not note_lack(name, shape, bench, words)]
    mesh = start_mesh(bench)
    children = {
        name: peers.start(bench.processes, name, bench.programs, shape, bench.net, bench.cores)
        for name in names
        if name != "starling"
    }
    before = [sum(lab.cpu_seconds(child.pid)) for child in mesh]
    time.sleep(settle)
    shares = [(sum(lab.cpu_seconds(child.pid)) - busy) / settle for child, busy in zip(mesh, before)]
    seen = {name: [memory_figures(child)] for name, child in children.items()}
    if "starling" in names:
        seen["starling"] = [memory_figures(child) for child in mesh]
        words["note"] = f"Starling: three that have met, {settle} s at rest, {max(shares):.2%} of a core at most"
    bench.processes.end([*children.values(), *mesh])
    for name, rounds in seen.items():
        lab.say(f"  {name:9}  {max(figures['rss_mib'] for figures in rounds):.1f} MiB")
    return seen, words


def memory_figures(child):
    told = lab.memory_kib(child.pid)
    return {"rss_mib": told["rss_kib"] / 1024, "pss_mib": told["pss_kib"] / 1024, "failed": 0}


def start_mesh(bench):
    """Three sidecars, once all know all."""
    hosts = [f"{bench.net}.{number}" for number in (21, 22, 23)]
    children = []
    for number, host in enumerate(hosts):
        others = [other for other in hosts if other != host]
        text = peers.starling_host(f"rest-{number}", host, f"eu-1{'abc'[number]}", others)
        file = bench.place / f"rest-{number}.toml"
        file.write_text(text + "\n[service.shop]\nport = 9001\n")
        words = [bench.programs["starling"], "agent", "--config", str(file)]
        children.append(bench.processes.start(f"starling-rest-{number}", words))
    deadline = time.monotonic() + MESH_WITHIN_S
    for host, child in zip(hosts, children):
        while alive_members(host) != len(hosts):
            if child.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the three sidecars did not meet within {MESH_WITHIN_S} s:\n{lab.last_words(child)}")
            time.sleep(0.1)
    return children


def alive_members(host):
    try:
        with urllib.request.urlopen(f"http://{host}:7070/v1/members", timeout=1) as answer:
            return sum(row["state"] == "alive" for row in json.load(answer))
    except (OSError, ValueError):
        return 0


# ---- one of four ----------------------------------------------------------------------------------------------------


def served(address):
    with urllib.request.urlopen(f"http://{address}/healthz/served", timeout=5) as answer:
        return int(answer.read())


def of_four(act_of, delays):
    """Four example backends, a process each, and every proxy before all of them."""

    def act(bench, row):
        words, program = {}, bench.programs["backend"]
        four = backends.start_slow_ones(bench.processes, program, bench.net, bench.load_cores, delays)
        shape = peers.Shape("http1", "http1", [child.address for child in four], bench.place)
        children = bench.start(row, shape, words)
        seen = measure.in_turns(list(children), act_of(bench, four, children), bench.options.rounds)
        bench.processes.end([*children.values(), *four])
        return seen, words

    return act


def slow_share(bench, four, children):
    """The first second teaches the proxy who is slow, and is not counted."""

    def act(name):
        def load():
            begun = [served(child.address) for child in four]
            told = call(bench, children[name].target, bench.options.seconds)
            counts = [served(child.address) - before for child, before in zip(four, begun)]
            return {**told, "slow_share": counts[-1] / max(1, sum(counts))}

        call(bench, children[name].target, 1)
        return measure.one_round(name, children[name], load, bench.cores)

    return act


def call(bench, target, seconds):
    return loads.caller(bench.programs["caller"], target, "/", RATE_OF_FOUR, seconds, bench.load_cores)


def killed(bench, four, children):
    """One is killed a third of the way through the load. Each time another, so that nobody has it sent out already."""
    turns = iter(range(10_000))

    def act(name):
        number, seconds = next(turns) % len(four), max(3, bench.options.seconds)
        words = loads.caller_words(bench.programs["caller"], children[name].target, "/", RATE_OF_FOUR, seconds)
        pin = lambda: os.sched_setaffinity(0, bench.load_cores)

        def load():
            calling = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=pin)
            time.sleep(seconds / 3)
            four[number].send_signal(signal.SIGKILL)
            said, _ = calling.communicate(timeout=60)
            told = json.loads(said)
            if told["failed"]:
                lab.say(f"    {name}: {told.get('failures', told['failed'])}")
            return {**loads.caller_figures(told, seconds), "failed_requests": told["failed"]}

        figures = measure.one_round(name, children[name], load, bench.cores)
        bench.processes.end([four[number]])
        program, address = bench.programs["backend"], four[number].address
        four[number] = backends.start_one(bench.processes, program, address, number, bench.load_cores, DELAY_MS)
        return figures

    return act


# ---- the table ------------------------------------------------------------------------------------------------------

H2_TITLE = f"{HTTP2_CONNECTIONS} connections × {HTTP2_STREAMS} streams, 1 KiB"
PER_GB = lambda *targets: [
    Line("CPU seconds per GB", "cpu_s_per_gb", 2, list(targets)),
    Line("megabytes per second", "megabytes_per_s", 0),
]

ROWS = [
    Row(
        "http1",
        "H1 → H1, {clients} keep-alive clients, 1 KiB",
        cost(("haproxy", 0.95), ("envoy", 0.25), more=[Line("of that, user time", "user_us", 1, [("most", 12)]), *SATURATED]),
        at_full_speed("http1", "http1", by_wrk(), direct=True),
        ("wrk",),
        saturating=True,
    ),
    Row(
        "h2c-http1",
        f"h2c → H1, {H2_TITLE}",
        cost(("haproxy", 1.15), more=SATURATED),
        at_full_speed("h2c", "http1", by_h2load),
        ("h2load",),
        saturating=True,
    ),
    Row(
        "h2c-h2c",
        f"h2c → h2c, {H2_TITLE}",
        cost(("haproxy", 1.3), ("envoy", 0.25), more=SATURATED),
        at_full_speed("h2c", "h2c", by_h2load, direct=True),
        ("h2load",),
        saturating=True,
    ),
    Row(
        "open-loop",
        "fixed rate, open loop, H1 → H1, 1 KiB",
        cost(
            ("haproxy", 1.0),
            more=[
                Line("p50 added to a direct call, µs", "p50_added_us", 0, [("haproxy", 1.0)]),
                Line("p99 added, µs", "p99_added_us", 0),
                Line("p99.9 added, µs", "p999_added_us", 0),
                Line("p99, ms", "p99_ms", 2, [("haproxy", 1.0)]),
                Line("p99.9, ms", "p999_ms", 2, [("haproxy", 1.0)]),
            ],
        ),
        open_loop,
        ("caller",),
    ),
    Row(
        "mtls-http1",
        "H1 → mutual TLS 1.3, H1, {clients} clients, 1 KiB",
        cost(("haproxy", 0.85), more=SATURATED),
        at_full_speed("http1", "mtls1", by_wrk()),
        ("wrk",),
        saturating=True,
    ),
    Row(
        "mtls-h2",
        "H1 → mutual TLS 1.3, H2 (the mesh hop), {clients} clients, 1 KiB",
        cost(("haproxy", 0.9), more=SATURATED),
        at_full_speed("http1", "mtls2", by_wrk()),
        ("wrk",),
        saturating=True,
    ),
    Row(
        "connections",
        "new client connection per request, H1 → H1, 1 KiB",
        cost(("haproxy", 1.0), more=SATURATED),
        at_full_speed("http1", "http1", by_wrk(close=True), direct=True),
        ("wrk",),
        saturating=True,
    ),
    Row("http-1m", "1 MiB bodies over HTTP", PER_GB(("most", 0.5)), at_full_speed("http1", "http1", by_downloads("1m", 4)), saturating=True),
    Row("http-64m", "64 MiB bodies over HTTP", PER_GB(("most", 0.5)), at_full_speed("http1", "http1", by_downloads("64m", 2)), saturating=True),
    Row(
        "tcp-1m",
        "1 MiB bodies over TCP",
        PER_GB(("most", 0.65)),
        at_full_speed("tcp", "http1", by_downloads("1m", 4)),
        variants=("splice",),
        saturating=True,
    ),
    Row(
        "tcp-64m",
        "64 MiB bodies over TCP",
        PER_GB(("most", 0.65)),
        at_full_speed("tcp", "http1", by_downloads("64m", 2)),
        variants=("splice",),
        saturating=True,
    ),
    Row(
        "tcp-small",
        "1 KiB over TCP, {clients} clients",
        cost(("haproxy", 1.0), more=SATURATED),
        at_full_speed("tcp", "http1", by_wrk(), direct=True),
        ("wrk",),
        saturating=True,
    ),
    Row("idle", "idle client connections, {idle} of them", [Line("KiB each", "kib_each", 2, [("most", 4)])], idle),
    Row("start", "memory at start", [Line("resident, MiB", "rss_mib", 1, [("most", 12)])], at_start),
    Row(
        "slow",
        f"1 of 4 backends 20 × slower, {RATE_OF_FOUR} requests/s",
        [Line("its share of the traffic, %", "slow_share", 2, [("most", 1)], factor=100), Line("p99, ms", "p99_ms", 1)],
        of_four(slow_share, [DELAY_MS] * 3 + [SLOW_MS]),
        ("caller",),
    ),
    Row(
        "killed",
        f"kill -9 of 1 of 4 backends, retries on, {RATE_OF_FOUR} requests/s",
        [Line("failed requests", "failed_requests", 0, [("most", 0)]), Line("p99.9, ms", "p999_ms", 1)],
        of_four(killed, [DELAY_MS] * 4),
        ("caller",),
    ),
]
