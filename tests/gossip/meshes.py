"""A mesh of real processes, Starling's or Serf's, and what each of them says it knows.

Not here: their network (world.py), and what is done to them (scenarios.py).

Nobody is polled: each process says what it learns in its log, on a pipe that one thread reads. A sidecar's lines carry
their own time (the moment calls begin to go by it); Serf's are stamped when they arrive.
"""

import base64
import calendar
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import threading
import time

from world import into

F_SETPIPE_SZ = 1031
PIPE_BYTES = 1024 * 1024
PORT, SERVICE_PORT = 7946, 9001
# Hosts whose application is checked, so that it can fail; the others' are taken to be well.
CHECKED = 4
LOG_LINES_MAX = 2000


class Ears:
    """One thread that reads what every process says, and accepts what checks call."""

    def __init__(self):
        self.changed = threading.Condition()
        self.ears = selectors.DefaultSelector()
        self.wake, hand = socket.socketpair()
        self.hand, self.over = hand, False
        self.ears.register(self.wake, selectors.EVENT_READ, None)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def add(self, file, hear):
        self.ears.register(file, selectors.EVENT_READ, hear)
        self.hand.send(b"x")

    def remove(self, file):
        with contextlib.suppress(KeyError, ValueError):
            self.ears.unregister(file)

    def read(self):
        while not self.over:
            for key, _ in self.ears.select(1):
                if key.data is None:
                    self.wake.recv(4096)
                elif key.data() is False:
                    self.remove(key.fileobj)

    def wait(self, done, within):
        """Until `done()` is true; looked at whenever somebody said something. Yields whether it came true."""
        deadline = time.time() + within
        with self.changed:
            while not done():
                left = deadline - time.time()
                if left <= 0:
                    return False
                self.changed.wait(min(left, 0.5))
            return True

    def close(self):
        self.over = True
        self.hand.send(b"x")
        self.thread.join(5)


class Said:
    """One thing a process said: at `time`, `observer` learned `what` of the host `subject`."""

    __slots__ = ("time", "observer", "what", "subject", "fields")

    def __init__(self, time, observer, what, subject=None, fields=None):
        self.time, self.observer, self.what, self.subject, self.fields = time, observer, what, subject, fields or {}


class Mesh:
    """What both kinds share: processes, their words, and who sees whom how since when."""

    kind = ""

    def __init__(self, world, ears, scratch, hosts):
        self.world, self.ears, self.hosts = world, ears, hosts
        self.scratch = pathlib.Path(scratch) / self.kind / world.prefix
        self.scratch.mkdir(parents=True)
        self.children, self.said = {}, []
        # view[observer][subject] = (state, since)
        self.view, self.offers, self.lines = {}, {}, {}

    def start(self, n):
        """Starts host `n`; yields when it was started."""
        self.view[n], self.offers[n] = {}, {}
        ours, theirs = os.pipe()
        fcntl.fcntl(ours, F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(ours, False)
        words, env = self.command(n)
        begun = time.time()
        child = subprocess.Popen(
            words, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env, preexec_fn=into(self.world.host(n))
        )
        os.close(theirs)
        self.children[n] = child
        rest, lines = [b""], self.lines.setdefault(n, [])

        def hear():
            try:
                read = os.read(ours, 1 << 20)
            except BlockingIOError:
                return True
            now = time.time()
            if not read:
                os.close(ours)
                return False
            *whole, rest[0] = (rest[0] + read).split(b"\n")
            with self.ears.changed:
                for line in whole:
                    text = line.decode(errors="replace")
                    if len(lines) < LOG_LINES_MAX:
                        lines.append(text)
                    if said := self.understand(n, text, now):
                        self.note(said)
                self.ears.changed.notify_all()
            return True

        self.ears.add(ours, hear)
        return begun

    def note(self, said):
        self.said.append(said)
        if said.what == "node":
            self.view[said.observer][said.subject] = (said.fields["state"], said.time)
        elif said.what == "offer":
            self.offers[said.observer][said.fields["instance"]] = said

    def kill(self, n):
        """kill -9; yields when it was sent."""
        child = self.children.pop(n)
        begun = time.time()
        child.kill()
        child.wait()
        return begun

    def signal(self, hosts, number):
        for n in hosts:
            self.children[n].send_signal(number)

    def await_end(self, n, within=20):
        self.children.pop(n).wait(within)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.signal(list(self.children), signal.SIGCONT)
        for n in list(self.children):
            self.kill(n)

    # ---- what they know ----

    def sees(self, observer, subject):
        return self.view[observer].get(subject, ("unknown", 0))[0]

    def all_meet(self, hosts):
        """Everybody sees everybody alive."""
        for observer in hosts:
            view = self.view[observer]
            if any(view.get(n, ("", 0))[0] != "alive" for n in hosts if n != observer):
                return False
        return True

    def is_whole(self, hosts):
        """Everybody sees everybody alive, and every offer."""
        return self.all_meet(hosts) and all(set(hosts) <= self.offering(n) for n in hosts)

    def offering(self, observer):
        """Whose offers it knows."""
        return set(range(1, self.hosts + 1))

    def whole_since(self, hosts):
        return max(self.view[a][b][1] for a in hosts for b in hosts if a != b)

    def until_whole(self, hosts, within):
        if not self.ears.wait(lambda: self.is_whole(hosts), within):
            missing = [
                f"{a} sees {b} {self.sees(a, b)}"
                for a in hosts
                for b in hosts
                if a != b and self.sees(a, b) != "alive"
            ]
            raise RuntimeError(f"{self.kind} is not whole within {within} s: {'; '.join(missing[:5])} ({len(missing)} in all)")

    def first_told(self, matches, observers, since, within):
        """When each observer first said something that matches, after `since`: {observer: time}."""
        found, at, wanted = {}, [0], set(observers)

        def done():
            for said in self.said[at[0] :]:
                if said.observer in wanted and said.observer not in found and said.time >= since and matches(said):
                    found[said.observer] = said.time
            at[0] = len(self.said)
            return len(found) == len(wanted)

        self.ears.wait(done, within)
        return found

    def wronged(self, since, until, healthy):
        """Who of the healthy was called down, by whom: at most once for each pair."""
        is_wrong = lambda said: (
            said.what == "node" and said.fields["state"] == "down" and since <= said.time <= until and said.subject in healthy
        )
        return sorted({(said.observer, said.subject) for said in self.said if is_wrong(said)})

    def count(self, what, state, since):
        return sum(
            said.what == what and said.time >= since and (state is None or said.fields.get("state") == state)
            for said in self.said
        )


# ---- Starling -------------------------------------------------------------------------------------------------------

STAMP = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{6})Z +([A-Z]+) ([\w:]+): (.*)$")
FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')


class Starling(Mesh):
    kind = "starling"

    def __init__(self, world, ears, scratch, hosts, binary, profile="fast", seal=True):
        super().__init__(world, ears, scratch, hosts)
        self.binary, self.profile = binary, profile
        self.key = os.urandom(32).hex() if seal else None
        self.weights, self.doors = {}, {}

    def name(self, n):
        return f"host-{n}"

    def directory(self, n):
        place = self.scratch / f"{n}"
        place.mkdir(exist_ok=True)
        return place

    def configure(self, n, weight=100, offers=True):
        me = self.world.address(n)
        seeds = ", ".join(f'"{self.world.address(seed)}"' for seed in self.seeds(n))
        check = ""
        if n <= CHECKED:
            check = 'check = { tcp = true, interval = "200ms", timeout = "150ms", fall = 1, rise = 1 }'
        service = f'[service.shop]\nport = {SERVICE_PORT}\ninstance = "shop-{n}"\nweight = {weight}\n{check}\n'
        key = f'key = "{self.key}"' if self.key else ""
        text = f"""[node]
id = "{self.name(n)}"
zone = "eu-1{'abc'[self.world.zone(n)]}"
advertise = "{me}"
state_dir = "{self.directory(n)}/state"
workers = 1
[gossip]
bind = "{me}:{PORT}"
join = [{seeds}]
profile = "{self.profile}"
{key}
[admin]
bind = "127.0.0.1:7070"
socket = "{self.directory(n)}/admin.sock"
[outbound]
http = "127.0.0.1:7080"
[drain]
grace = "0s"
timeout = "1s"
{service if offers else ''}"""
        file = self.directory(n) / "starling.toml"
        fresh = file.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o600)
        fresh.rename(file)
        return file

    def seeds(self, n):
        return [seed for seed in (1, 2, 3) if seed != n]

    def command(self, n):
        file = self.configure(n)
        self.open_door(n)
        told = "warn,sidecar::gossip=info,sidecar::start=info,sidecar::drain=info,sidecar::gossip::told=debug"
        return [self.binary, "agent", "--config", str(file)], {**os.environ, "RUST_LOG": told, "NO_COLOR": "1"}

    def understand(self, n, line, _):
        found = STAMP.match(line)
        if not found:
            return Said(time.time(), n, "noise", None, {"line": line})
        *date, micros, level, target, words = found.groups()
        at = calendar.timegm(tuple(int(part) for part in date)) + int(micros) / 1e6
        if target.endswith("gossip::told"):
            what, _, rest = words.partition(" ")
            fields = {key: value.strip('"') for key, value in FIELD.findall(rest)}
            subject = int(fields["node"].removeprefix("host-"))
            fields["state"] = fields["state"].lower()
            return Said(at, n, "node" if what == "node" else "offer", subject, fields)
        if words == "ready":
            return Said(at, n, "ready")
        if "our instance's health changed" in words:
            return Said(at, n, "health", None, {"state": words.rsplit("health=", 1)[-1].lower()})
        if level in ("WARN", "ERROR"):
            return Said(at, n, "warning", None, {"line": words, "level": level})
        return None

    def offering(self, observer):
        return {said.subject for said in self.offers[observer].values() if said.fields["state"] != "withdrawn"}

    # ---- steering ----

    def ask(self, n, method, path, body=None):
        link = http.client.HTTPConnection("localhost", timeout=10)
        link.sock = socket.socket(socket.AF_UNIX)
        link.sock.settimeout(10)
        link.sock.connect(str(self.directory(n) / "admin.sock"))
        link.request(method, path, body)
        answer = link.getresponse()
        text = answer.read().decode()
        link.close()
        if answer.status >= 300:
            raise RuntimeError(f"{self.name(n)}: {method} {path}: {answer.status} {text}")
        return text

    def metrics(self, n):
        found = {}
        for line in self.ask(n, "GET", "/metrics").splitlines():
            if line.startswith("starling_gossip") and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def leave(self, n):
        begun = time.time()
        self.ask(n, "POST", "/v1/leave")
        return begun

    def forget(self, n):
        """Its next start is a first one."""
        for file in (self.directory(n) / "state").glob("*"):
            file.unlink()

    def open_door(self, n):
        """The checked application of host `n` is well."""
        if n > CHECKED or n in self.doors:
            return
        door = self.doors[n] = self.world.listener(n, SERVICE_PORT)

        def accept():
            with contextlib.suppress(OSError):
                door.accept()[0].close()

        self.ears.add(door, accept)

    def shut_door(self, n):
        door = self.doors.pop(n)
        self.ears.remove(door)
        door.close()

    def change(self, number):
        """The `number`th change of a service: failing, draining, another weight, in turns.

        Yields its kind, whose it is, when it began, what is said of it, and how to undo it."""
        kind = ("failing", "draining", "weight")[number % 3]
        begun = time.time()
        if kind == "failing":
            n = number // 3 % min(CHECKED, self.hosts) + 1
            self.shut_door(n)
            told = self.first_told(lambda said: said.what == "health", [n], begun, 10)
            if n not in told:
                raise RuntimeError(f"the check of {self.name(n)} did not notice")
            matches = lambda said: said.what == "offer" and said.subject == n and said.fields.get("health") == "Failing"
            return kind, n, told[n], matches, lambda: self.open_door(n)
        n = CHECKED + 1 + number % (self.hosts - CHECKED)
        if kind == "draining":
            self.ask(n, "POST", "/v1/drain")
            matches = lambda said: said.what == "offer" and said.subject == n and said.fields["state"] == "draining"
            return kind, n, begun, matches, lambda: self.ask(n, "POST", "/v1/undrain")
        weight = self.weights[n] = self.weights.get(n, 100) % 900 + 1
        self.configure(n, weight)
        self.ask(n, "POST", "/v1/reload")
        matches = lambda said: said.what == "offer" and said.subject == n and said.fields.get("weight") == str(weight)
        return kind, n, begun, matches, lambda: None


# ---- Serf -----------------------------------------------------------------------------------------------------------

EVENT = re.compile(r"serf: EventMember(\w+): host-(\d+)")
STATES = {"Join": "alive", "Failed": "down", "Leave": "left", "Reap": "gone", "Update": "alive"}


class Serf(Mesh):
    kind = "serf"

    def __init__(self, world, ears, scratch, hosts, binary):
        super().__init__(world, ears, scratch, hosts)
        self.binary, self.key = binary, base64.b64encode(os.urandom(32)).decode()

    def command(self, n):
        words = [self.binary, "agent", f"-node=host-{n}", f"-bind={self.world.address(n)}:{PORT}", "-profile=lan"]
        words += [f"-encrypt={self.key}", "-log-level=info", "-retry-interval=1s", "-tag=version=0"]
        words += [f"-retry-join={self.world.address(seed)}" for seed in (1, 2, 3) if seed != n]
        return words, dict(os.environ)

    def understand(self, n, line, now):
        if found := EVENT.search(line):
            event, subject = found.groups()
            what = "update" if event == "Update" else "node"
            return Said(now, n, what, int(subject), {"state": STATES[event]})
        return None

    def order(self, n, *words):
        command = [self.binary, *words]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=into(self.world.host(n)), timeout=30)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def leave(self, n):
        begun = time.time()
        self.order(n, "leave")
        return begun

    def forget(self, n):
        pass

    def change(self, number):
        """A tag of some agent changes; it counts from when that agent says so itself."""
        n = CHECKED + 1 + number % (self.hosts - CHECKED)
        begun = time.time()
        self.order(n, "tags", "-set", f"version={number + 1}")
        own = self.first_told(lambda said: said.what == "update" and said.subject == n, [n], begun, 5)
        matches = lambda said: said.what == "update" and said.subject == n
        return "tag", n, own.get(n, begun), matches, lambda: None
