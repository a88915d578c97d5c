"""The loads: wrk, h2load and the example caller told apart from their words, downloads, and connections that rest.

Not here: what is measured of the proxies meanwhile (measure.py). Every load yields `requests`, `failed`, `rate` (per
second) and `bytes` (of bodies), and the latencies it knows in milliseconds.
"""

import contextlib
import hashlib
import os
import http.client
import json
import math
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import time

import lab

# Latency percentiles and counts as JSON; wrk's own words stop at p99.
WRK_SCRIPT = """done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%d,"us":%d,"bytes":%d,"failed":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""
READ_BYTES = 256 * 1024
HEAD_BYTES_MAX = 16 * 1024
# h2load logs some 25 bytes a request: a minute of 100,000 requests a second.
LOG_BYTES_MAX = 150 * 1024 * 1024


def finished(words, cores):
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    if not done.stdout:
        sys.exit(f"{words[0]} failed: {done.stderr}")
    return done.stdout


def wrk(program, place, target, path, clients, seconds, cores, close=False):
    """As fast as they can. `close`: every request on a connection of its own."""
    script = place / "done.lua"
    script.write_text(WRK_SCRIPT)
    words = [program, "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(script), f"http://{target}{path}"]
    words += ["-H", "Connection: close"] if close else []
    told = json.loads(finished(words, cores).strip().splitlines()[-1])
    figures = {f"{name}_ms": told[f"{name}_us"] / 1000 for name in ("p50", "p99", "p999")}
    seconds = told["us"] / 1e6
    return {**figures, "requests": told["requests"], "failed": told["failed"], "rate": told["requests"] / seconds, "bytes": told["bytes"]}


def h2load(program, place, target, path, connections, streams, seconds, cores):
    """HTTP/2 by prior knowledge, as fast as it can. It tells no percentiles itself, so each request's time is logged."""
    log = place / "h2load.log"
    log.unlink(missing_ok=True)
    words = [program, f"-c{connections}", f"-m{streams}", "-t1", f"-D{seconds}", f"--log-file={log}", f"http://{target}{path}"]
    out = finished(words, cores)
    number = lambda pattern: float(re.search(pattern, out).group(1))
    if "Application protocol: h2c" not in out:
        sys.exit(f"h2load spoke no h2c to {target}:\n{out}")
    # Status codes are counted when a head comes, so at the end there are more of them than whole answers.
    good = number(r"(\d+) succeeded")
    failed = sum(number(rf"(\d+) {kind}") for kind in ("failed", "errored", "timeout", "3xx", "4xx", "5xx"))
    return {
        **logged_percentiles(log),
        "requests": int(good),
        "failed": int(failed),
        "rate": number(r"([\d.]+) req/s"),
        "bytes": int(number(r"headers \(space savings [\d.-]+%\), \S+ \((\d+)\) data")),
    }


def logged_percentiles(log):
    """p50, p99 and p99.9 of h2load's log: start in µs, status and time in µs of each request. At most LOG_BYTES_MAX are read,
    from the beginning; the log is gone afterwards."""
    with log.open("rb") as lines:
        told = lines.read(LOG_BYTES_MAX)
    log.unlink()
    # The last line may be cut.
    fields = (line.split(b"\t") for line in told.split(b"\n")[:-1])
    times = sorted(int(field[2]) for field in fields if len(field) == 3)
    if not times:
        sys.exit("h2load logged no request")
    rank = lambda share: times[max(0, math.ceil(share * len(times)) - 1)] / 1000
    return {"p50_ms": rank(0.5), "p99_ms": rank(0.99), "p999_ms": rank(0.999)}


def caller(program, target, path, rate, seconds, cores):
    """Requests at fixed times, whether or not earlier ones were answered."""
    told = json.loads(finished(caller_words(program, target, path, rate, seconds), cores))
    return caller_figures(told, seconds)


def caller_words(program, target, path, rate, seconds):
    words = [program, "--to", target, "--authority", "bench", "--path", path]
    return words + ["--rate", str(rate), "--seconds", str(seconds)]


def caller_figures(told, seconds):
    figures = {key: told[key] for key in ("p50_ms", "p99_ms", "p999_ms", "failed")}
    # Bodies are read to their end, but not counted.
    return {**figures, "requests": told["sent"], "rate": told["sent"] / seconds, "bytes": None}


def fetch(target, path, http2=False):
    """One answer's status and body. HTTP/2 needs curl; None where it is not there."""
    if http2:
        curl = shutil.which("curl")
        if not curl:
            return None
        words = [curl, "-s", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}", f"http://{target}{path}"]
        body, _, end = subprocess.run(words, capture_output=True, timeout=30).stdout.rpartition(b"\n")
        version, status = end.split()
        return (int(status) if version == b"2" else 0), body
    connection = http.client.HTTPConnection(*target.rsplit(":", 1), timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def sha256_of(target, path):
    status, body = fetch(target, path)
    return status, hashlib.sha256(body).hexdigest()


# ---- downloads ------------------------------------------------------------------------------------------------------


class Download:
    """One kept connection that asks for the same body again and again."""

    def __init__(self, target, path):
        host, port = target.rsplit(":", 1)
        self.stream = socket.create_connection((host, int(port)), timeout=10)
        self.stream.setblocking(False)
        self.request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self.done, self.bytes = 0, 0
        self.ask()

    def ask(self):
        self.head, self.left = b"", None
        self.stream.send(self.request)

    def read(self, room):
        """Takes what is there. Errors when the answer is not a whole 200 with a length."""
        got = self.stream.recv_into(room)
        if not got:
            raise OSError("closed amid an answer")
        if self.left is None:
            self.head += bytes(room[:got])
            end = self.head.find(b"\r\n\r\n")
            if end < 0 and len(self.head) < HEAD_BYTES_MAX:
                return
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self.head[:end])
            if not self.head.startswith(b"HTTP/1.1 200 ") or not length:
                raise OSError(f"not a 200 with a length: {self.head[:200]!r}")
            self.left = int(length.group(1))
            got = len(self.head) - end - 4
        self.bytes += got
        self.left -= got
        if self.left < 0:
            raise OSError("more bytes than were announced")
        if self.left == 0:
            self.done += 1
            self.ask()


def downloads(target, path, connections, seconds):
    """Bodies as fast as they come; `rate` counts whole ones, `bytes` all that arrived."""
    room = memoryview(bytearray(READ_BYTES))
    failed, began = 0, time.monotonic()
    with selectors.EpollSelector() as ready, contextlib.ExitStack() as stack:
        all_of_them = [Download(target, path) for _ in range(connections)]
        for one in all_of_them:
            stack.enter_context(one.stream)
            ready.register(one.stream, selectors.EVENT_READ, one)
        while time.monotonic() < began + seconds and failed < connections:
            for key, _ in ready.select(1):
                try:
                    key.data.read(room)
                except BlockingIOError:
                    pass
                except OSError as error:
                    lab.say(f"    a download failed: {error}")
                    ready.unregister(key.fileobj)
                    failed += 1
        took = time.monotonic() - began
    done, got = (sum(getattr(one, key) for one in all_of_them) for key in ("done", "bytes"))
    return {"requests": done, "failed": failed, "rate": done / took, "bytes": got, "megabytes_per_s": got / took / 1e6}


# ---- connections that rest ------------------------------------------------------------------------------------------

# A loopback address has some 28,000 ports, so callers come from several.
SOURCES = 100
RESTING_REQUEST = b"GET / HTTP/1.1\r\nHost: crowd\r\nX-Idle: 1\r\n\r\n"


def raise_limit(needed):
    """Room for so many descriptors; ends the script with what to do where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(f"{needed} descriptors are needed and {hard} allowed; raise the limit: ulimit -n {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def open_from(net, number, target):
    host, port = target.rsplit(":", 1)
    source = f"{net}.{120 + number % SOURCES}"
    return socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))


def settled(net, number, target):
    """A connection that has had one whole answer and rests."""
    connection = open_from(net, number, target)
    connection.sendall(RESTING_REQUEST)
    answer, wanted = b"", None
    while wanted is None or len(answer) < wanted:
        piece = connection.recv(4096)
        if not piece:
            sys.exit(f"{target} closed an idle connection at once: is its limit of connections too low?")
        answer += piece
        length = re.search(rb"(?is)^HTTP/1\.1 200 .*?\r\ncontent-length: *(\d+).*?\r\n\r\n", answer)
        if length:
            wanted = length.end() + int(length.group(1))
        elif len(answer) > HEAD_BYTES_MAX:
            sys.exit(f"{target} gave no 200 with a length: {answer[:200]!r}")
    return connection


def alive(connections):
    """How many of them are still open."""
    count = 0
    for connection in connections:
        connection.setblocking(False)
        try:
            count += connection.recv(1) != b""
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count
