"""Figures as a table: what was measured, what it should be, and what the machine was doing meanwhile.

Not here: the measuring.
"""


def seconds(figures, *keys):
    if not figures:
        return "–"
    return " / ".join(f"{figures[key]:.2f}" for key in keys)


def rows(name, kind, told):
    """(what, the figure as text, whether it is within its target or None) for one mesh in one scenario."""
    fast = kind == "fast"
    if name in ("crash", "slow-crash"):
        last = told["last_s"]
        limits = (3.5, 5.5) if fast else (9, 11)
        held = told["missed"] == 0 and last["median"] <= limits[0] and last["max"] <= limits[1]
        yield "crash → first survivor, median / max s", seconds(told["first_s"], "median", "max"), None
        yield "crash → last survivor, median / max s", seconds(last, "median", "max"), held
        yield "crash: survivors that never knew", str(told["missed"]), told["missed"] == 0
    elif name in ("change", "slow-change"):
        last = told["last_s"]
        held = told["missed"] == 0 and last["median"] <= 0.3 and last["p99"] <= 0.6 and last["max"] <= 5
        yield "change → last node, median / p99 / max s", seconds(last, "median", "p99", "max"), held
        for kind_of, figures in told["by_kind"].items():
            yield f"of those {kind_of}, median / p99 / max s", seconds(figures, "median", "p99", "max"), None
        yield "changes missed by a node", str(told["missed"]), told["missed"] == 0
    elif name == "join":
        known, ready = told["known_by_all_s"], told["ready_s"]
        held = bool(known) and told["missed"] == 0 and known["median"] <= 0.5
        yield "process start → known by all, median / max s", seconds(known, "median", "max"), held
        yield "process start → joiner ready, median / max s", seconds(ready, "median", "max"), ready and ready["median"] <= 0.1
        yield "process start → joiner knows all, median / max s", seconds(told["knows_all_s"], "median", "max"), None
        yield "joiners that somebody missed", str(told["missed"]), told["missed"] == 0
    elif name == "leave":
        last = told["last_s"]
        held = bool(last) and told["missed"] == 0 and last["median"] <= 0.4
        yield "goodbye → last node, median / max s", seconds(last, "median", "max"), held
        yield "goodbyes missed by a node", str(told["missed"]), told["missed"] == 0
    elif name == "start":
        whole = told["whole_s"]
        yield "all started → all know all, median / max s", seconds(whole, "median", "max"), whole["max"] <= 3
    elif name == "idle":
        sent, limit = told["sent_per_node_per_s"], 600 if fast else 350
        yield "idle bytes sent per node per s, payload", f"{told['payload_b_per_s']:.0f}", told["payload_b_per_s"] <= limit
        yield "of those UDP + TCP", f"{sent['udp']['payload']:.0f} + {sent['tcp']['payload']:.0f}", None
        yield "the same with IP and UDP or TCP heads", f"{told['with_ip_heads_b_per_s']:.0f}", None
        if own := told.get("own_count_b_per_s"):
            yield "its own count, UDP + TCP", f"{own['udp']:.0f} + {own['tcp']:.0f}", None
        yield "CPU, % of a core, whole process", f"{told['core_share'] * 100:.2f}", None
        memory = told["memory_kib"]
        yield "memory, MiB resident / private", f"{memory['rss'] / 1024:.1f} / {memory['private'] / 1024:.1f}", None
        if added := told.get("mesh_adds_kib"):
            share = told["core_share"] - told["core_share_alone"]
            yield "the mesh's part: CPU above alone, % of a core", f"{share * 100:.2f}", share <= 0.003
            yield "the mesh's part: MiB above alone, private", f"{added['private'] / 1024:.1f}", added["private"] <= 3072
    elif name in ("quiet", "loss", "stall", "deaf_udp", "deaf", "mute_udp", "mute", "slow-quiet"):
        words = {
            "quiet": "idle: false downs",
            "loss": "packet loss: false downs",
            "stall": "4 of 64 stalled 16 s at a time: others told down",
            "deaf_udp": "one deaf on UDP: anybody told down",
            "deaf": "one deaf on everything: others told down",
            "mute_udp": "one mute on UDP: anybody told down",
            "mute": "one mute on everything: others told down",
            "slow-quiet": "slow links, idle: false downs",
        }
        yield words[name], str(told["false_downs"]), told["false_downs"] == 0
        if again := told.get("whole_again_s"):
            text = seconds(again, "median", "max") if isinstance(again, dict) else f"{again:.2f}"
            yield "whole again after it, s", text, None
    elif name == "partition":
        whole = told["whole_s"]
        yield "60 s half and half: pairs across that gave each other up", f"{told['told_down_across']} of {told['of']}", None
        yield "60 s half and half: whole after, s", f"{whole:.2f}" if whole is not None else "never", whole is not None and whole <= 12
        if "records_wrong" in told:
            yield "hosts with a record lost or stale", str(len(told["records_wrong"])), not told["records_wrong"]
            yield "records revived", str(told["revived"]), told["revived"] == 0


def beside(name, told, serf):
    """The rows that compare a mesh with Serf's in the same run."""
    if name in ("crash", "slow-crash", "change", "slow-change"):
        limit = 0.4 if name.endswith("crash") else 0.5
        if told["last_s"] and serf["last_s"]:
            share = told["last_s"]["median"] / serf["last_s"]["median"]
            yield f"Starling ÷ Serf: last node, median (at most {limit})", f"{share:.2f}", share <= limit
    elif name == "idle":
        added, whole = told.get("mesh_adds_kib"), serf["memory_kib"]
        if added:
            share = added["private"] / whole["private"]
            yield "the mesh's part of memory ÷ a Serf agent's, private (at most 1/3)", f"{share:.2f}", share <= 1 / 3
        share = told["payload_b_per_s"] / serf["payload_b_per_s"]
        yield "Starling ÷ Serf: idle bytes", f"{share:.2f}", None
        yield "Starling ÷ Serf: CPU of whole processes", f"{told['core_share'] / serf['core_share']:.2f}", None


def all_rows(name, title, result, kinds):
    """Every row of one mesh, those beside Serf included."""
    told = result[title]
    yield from rows(name, kinds[title], told)
    serf = next((figures for other, figures in result.items() if kinds[other] == "serf"), None)
    if serf and kinds[title] == "fast":
        yield from beside(name, told, serf)


TARGETS = {
    "crash → last survivor": "≤ 3.5 / 5.5 (calm 9 / 11)",
    "change → last node": "≤ 0.3 / 0.6 / 5",
    "process start → known by all": "≤ 0.5",
    "process start → joiner ready": "≤ 0.1",
    "goodbye →": "≤ 0.4",
    "all started": "≤ 3",
    "idle bytes": "≤ 600 (calm 350)",
    "the mesh's part: CPU": "≤ 0.3",
    "the mesh's part: MiB": "≤ 3",
    "60 s half and half: whole": "≤ 12",
}


def target(what):
    return next((words for start, words in TARGETS.items() if what.startswith(start)), "0" if "told down" in what or "false" in what else "")


def table(name, result, kinds):
    """One scenario as lines; `kinds` says what each mesh is: fast, calm or serf."""
    told = {title: list(all_rows(name, title, result, kinds)) for title in result}
    lines = ["| figure | target | " + " | ".join(told) + " |", "|---|---|" + "---|" * len(told)]
    for what in dict.fromkeys(row[0] for figures in told.values() for row in figures):
        cells = []
        for title, figures in told.items():
            found = next((row for row in figures if row[0] == what), None)
            mark = "" if not found or found[2] is None or kinds[title] == "serf" else (" ✓" if found[2] else " ✗")
            cells.append((found[1] if found else "") + mark)
        lines.append(f"| {what} | {target(what)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(name, result, kinds):
    """What missed its target, in words."""
    for title in result:
        if kinds[title] == "serf":
            continue
        for what, text, held in all_rows(name, title, result, kinds):
            if held is False:
                wanted = f" (target {target(what)})" if target(what) else ""
                yield f"{name}: {title}: {what}: {text}{wanted}"
