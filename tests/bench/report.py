"""Figures as tables: medians and targets first, then every row with its ranges; and all of it as JSON.

Not here: the measuring.
"""

import measure
from peers import TITLES

COLUMNS = ["haproxy", "nginx", "envoy", "starling"]


def title_of(row, options):
    return row.title.format(clients=options.clients, idle=options.idle)


def shown(line, figure):
    return f"{figure * line.factor:.{line.digits}f}"


def verdicts(line, told):
    """(the target in words, how far along, whether it is met) of each target that can be judged."""
    mine = told.get("starling", {}).get(line.key)
    for against, most in line.targets:
        if against == "most":
            words = f"≤ {most}"
            yield words, None, None if mine is None else mine["median"] * line.factor <= most
            continue
        other = told.get(against, {}).get(line.key)
        words = f"≤ {most} × {TITLES[against]}"
        if mine is None or other is None or other["median"] <= 0:
            yield words, None, None
        else:
            ratio = mine["median"] / other["median"]
            yield words, ratio, ratio <= most


def verdict_cell(parts):
    said = []
    for words, ratio, met in parts:
        if met is None:
            said.append(f"{words}: not judged")
        else:
            far = "" if ratio is None else f" ({ratio:.2f})"
            said.append(f"{words}: met{far}" if met else f"{words}: **missed**{far}")
    return "; ".join(said)


def main_table(results, options):
    lines = ["| scenario | " + " | ".join(TITLES[name] for name in COLUMNS) + " | target |", "|---|" + "---|" * 5]
    for row, told in results:
        for line in row.lines:
            if not line.targets:
                continue
            cells = []
            for name in COLUMNS:
                figure = told["figures"].get(name, {}).get(line.key)
                cell = shown(line, figure["median"]) if figure else "–"
                splice = told["figures"].get("splice", {}).get(line.key)
                if name == "haproxy" and splice:
                    cell += f"; splice {shown(line, splice['median'])}"
                cells.append(cell)
            target = verdict_cell(verdicts(line, told["figures"]))
            lines.append(f"| {title_of(row, options)}: {line.title} | " + " | ".join(cells) + f" | {target} |")
    return lines


def detail(row, told, options):
    names = [name for name in [*COLUMNS, "splice"] if name in told["figures"]]
    lines = [f"### {title_of(row, options)}", ""]
    if not names:
        return [*lines, f"Not measured: {told['words'].get('all', 'nobody is here who can do it')}.", ""]
    lines += ["| figure | " + " | ".join(TITLES[name] for name in names) + " | ÷ HAProxy |", "|---|" + "---|" * (len(names) + 1)]
    kinds = [(line.title, line.key, line.digits, line.factor) for line in row.lines]
    kinds += [("share of its core", "core_share", 0, 100), ("core taken by others, %", "foreign_share", 0, 100), ("failed", "failed", 0, 1)]
    for title, key, digits, factor in kinds:
        figures = {name: told["figures"][name].get(key) for name in names}
        if not any(figures.values()):
            continue
        cells = [spread(figures[name], digits, factor) if figures[name] else "–" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {ratio_range(told['rounds'], key)} |")
    for name, why in told["words"].items():
        lines += ["", f"{TITLES.get(name, name)}: {why}." if name != "note" else f"{why}."]
    return [*lines, ""]


def spread(figure, digits, factor):
    middle, least, most = (f"{figure[key] * factor:.{digits}f}" for key in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least}–{most})"


def ratio_range(rounds, key):
    """Starling's figure over HAProxy's of the same round: median, least and largest."""
    if not ("starling" in rounds and "haproxy" in rounds):
        return ""
    pairs = zip(rounds["starling"], rounds["haproxy"])
    ratios = [{"it": mine[key] / other[key]} for mine, other in pairs if mine.get(key) is not None and other.get(key)]
    return spread(measure.summary(ratios)["it"], 2, 1) if ratios else ""


def doubts(results, options):
    """What makes a figure less than it seems."""
    said = []
    for row, told in results:
        title = title_of(row, options)
        for name, rounds in told["rounds"].items():
            failed = sum(figures["failed"] for figures in rounds)
            if failed and row.name != "killed":
                said.append(f"{title}: {failed:.0f} failed through {TITLES[name]}")
        foreign = [figures.get("foreign_share", 0) for rounds in told["rounds"].values() for figures in rounds]
        if foreign and max(foreign) > measure.FOREIGN_SHARE_MAX:
            said.append(f"{title}: others took up to {max(foreign):.0%} of the proxies' core; ratios hold better than absolute figures")
        if waiting := bound_by_load(row, told):
            said.append(
                f"{title}: {', '.join(waiting)} waited for load and backends: requests per second and latencies are theirs, "
                "CPU is the proxy's"
            )
    return said


def bound_by_load(row, told):
    """The proxies whose core had time left although the load was as fast as it can."""
    if not row.saturating:
        return []
    busy = lambda name: max(f["core_share"] + f["foreign_share"] for f in told["rounds"][name])
    return [TITLES[name] for name in told["rounds"] if busy(name) < measure.SATURATED_SHARE_MIN]


def document(about, results, missing, options):
    """The Markdown text, the JSON document, and whether a target was missed."""
    lines = ["## Side by side", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in about.items()]
    lines += ["", "Medians of interleaved rounds; in brackets how much of the other's it came to.", "", *main_table(results, options), ""]
    missed = [
        f"{title_of(row, options)}: {line.title}: {words}"
        for row, told in results
        for line in row.lines
        for words, _, met in verdicts(line, told["figures"])
        if met is False
    ]
    notes = [*(f"missing: {words}" for words in missing), *doubts(results, options)]
    lines += ["Missed:", "", *(f"- {words}" for words in missed), ""] if missed else ["No target that could be judged was missed.", ""]
    lines += ["To keep in mind:", "", *(f"- {words}" for words in notes), ""] if notes else []
    lines += ["## Row by row", "", "Medians (least–largest); the last column is Starling's over HAProxy's, round by round.", ""]
    for row, told in results:
        lines += detail(row, told, options)
    json_rows = {
        row.name: {
            "title": title_of(row, options),
            "figures": told["figures"],
            "rounds": told["rounds"],
            "words": told["words"],
            "targets": [
                {"figure": line.key, "target": words, "ratio": ratio, "met": met}
                for line in row.lines
                for words, ratio, met in verdicts(line, told["figures"])
            ],
        }
        for row, told in results
    }
    return "\n".join(lines), {"about": about, "rows": json_rows, "missed": missed, "notes": notes}
