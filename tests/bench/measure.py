"""Rounds: each proxy in turn under the same load, with what the kernel counted for it meanwhile.

Not here: which loads (rows.py), and the table (report.py).
"""

import os
import statistics
import sys
import time

import lab
import loads
import peers
from backends import ARRIVES_AS

# Beyond this share of the proxies' core taken by others, figures are told as made on a machine that was not quiet.
FOREIGN_SHARE_MAX = 0.10
# A core less busy than this while a load is as fast as it can is waiting for that load.
SATURATED_SHARE_MIN = 0.90


class Bench:
    """What all rows share: programs, cores, addresses, backends and options."""

    def __init__(self, options, programs, processes, net, cores, load_cores, backends):
        self.options, self.programs, self.processes, self.net = options, programs, processes, net
        self.cores, self.load_cores, self.backends = cores, load_cores, backends
        self.place = processes.scratch
        # Bodies that came through unchanged: (target, name).
        self.proven = set()

    def start(self, row, shape, words):
        """The proxies that can be what the shape asks; why each other cannot goes into `words`."""
        started = {}
        for name in [*self.options.peers, *row.variants]:
            why = peers.lacks(name, shape, self.programs)
            if why:
                words[name] = why
            else:
                started[name] = peers.start(self.processes, name, self.programs, shape, self.net, self.cores)
        return started

    def prove(self, children, shape):
        """Ends the run unless requests arrive at the backends by the protocol the row is about."""
        if not self.backends.nginx or shape.endpoints != self.backends.addresses(shape.back):
            return
        for name, child in children.items():
            answer = loads.fetch(child.target, "/who", http2=shape.front == "h2c")
            if answer is None:
                lab.say("  not proven how requests arrive: curl is missing (Debian: apt-get install curl)")
                return
            if answer != (200, ARRIVES_AS[shape.back].encode()):
                sys.exit(f"through {name} requests should arrive as {ARRIVES_AS[shape.back]} and the answer was {answer}")


def one_round(name, child, load, cores):
    """One load through one proxy. `child` None: a call without a proxy."""
    core, began = min(cores), time.monotonic()
    before = lab.cpu_seconds(child.pid) if child else (0, 0)
    busy = lab.core_busy_s(core)
    figures = load()
    after = lab.cpu_seconds(child.pid) if child else (0, 0)
    busy, took = lab.core_busy_s(core) - busy, time.monotonic() - began
    user, system = after[0] - before[0], after[1] - before[1]
    if child:
        each = 1e6 / max(1, figures["requests"])
        figures |= {"user_us": user * each, "system_us": system * each, "cpu_us": (user + system) * each}
        if "megabytes_per_s" in figures:
            figures["cpu_s_per_gb"] = (user + system) * 1e9 / figures["bytes"]
        figures["core_share"] = (user + system) / took
        figures["foreign_share"] = max(0.0, (busy - user - system) / took)
    tell(name, figures)
    return figures


def tell(name, figures):
    kinds = [
        ("rate", "{:9.0f}/s"),
        ("cpu_us", "  cpu {:6.1f} µs"),
        ("cpu_s_per_gb", "  {:.3f} s/GB"),
        ("p50_ms", "  p50 {:.2f}"),
        ("p99_ms", "  p99 {:.2f} ms"),
        ("core_share", "  core {:.0%}"),
        ("kib_each", "  {:.2f} KiB each"),
        ("slow_share", "  to the slow one {:.2%}"),
    ]
    words = "".join(shown.format(figures[key]) for key, shown in kinds if figures.get(key) is not None)
    lab.say(f"  {name:9}{words}  failed {figures['failed']}")


def in_turns(names, act, rounds, warm=None):
    """`rounds` figures of each: who goes first changes, and `warm` comes before the first."""
    seen = {name: [] for name in names}
    if warm:
        for name in names:
            warm(name)
    for number in range(rounds):
        turn = number % max(1, len(names))
        for name in [*names[turn:], *names[:turn]]:
            seen[name].append(act(name))
    return seen


def summary(rounds):
    """Median, least and largest of every figure."""
    told = {}
    for key in rounds[0]:
        values = sorted(figures[key] for figures in rounds if figures.get(key) is not None)
        if values:
            told[key] = {"median": statistics.median(values), "min": values[0], "max": values[-1]}
    return told


def pick_cores():
    """The proxies' core, and those of everything else (the same where there is only one)."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, set(cores[1:] or cores)
