"""Hosts with networks of their own: namespaces around a router, cut, deafened and counted with nftables.

Not here: what runs on them (meshes.py). Needs root, ip and nft. Everything made here is named sg<PID>... and taken away
by close(); what a run that was killed left behind is swept by the next one.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
# IPv4 and UDP or TCP (with time stamps) in front of what the programs said.
UDP_HEAD, TCP_HEAD = 28, 52
# The router's address on every link, and the routing tables of the zones.
GATEWAY, ZONE_TABLE = "169.254.1.1", 100
OWN_NET = os.open("/proc/self/ns/net", os.O_RDONLY)


def run(words, told=None):
    done = subprocess.run(words, input=told, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def enter(namespace):
    """Moves this thread into a namespace."""
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if LIBC.setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(fd)


@contextlib.contextmanager
def inside(namespace):
    """The calling thread stands in a namespace for a while; sockets made there stay there."""
    enter(namespace)
    try:
        yield
    finally:
        LIBC.setns(OWN_NET, CLONE_NEWNET)


def into(namespace):
    """What a child does first: into the namespace, and dead when we are."""

    def act():
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        enter(namespace)

    return act


def sweep():
    """Takes away what runs that were killed have left behind."""
    for line in run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0] if line.strip() else ""
        pid = name[2:].split("-")[0] if name.startswith("sg") else ""
        if pid.isdigit() and not pathlib.Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", name])


class World:
    """`hosts` hosts, 1 to 250, in `zones` zones; packets from zone to zone take `delay_ms` more each way.

    A router and no bridge: on one network of 64 hosts everybody would keep a neighbour entry for everybody, which is
    more than a kernel holds for all its namespaces together (net.ipv4.neigh.default.gc_thresh3, 1,024)."""

    def __init__(self, letter, hosts, zones=1, delay_ms=0):
        self.prefix = f"sg{os.getpid()}-{letter}"
        self.hosts, self.zones = hosts, zones
        self.net = f"10.{60 + ord(letter) - ord('a')}.0"
        self.middle = f"{self.prefix}m"
        self.made, self.relay, self.cuts = [], None, 0
        try:
            self.build(delay_ms)
        except BaseException:
            self.close()
            raise

    def build(self, delay_ms):
        everyone = range(1, self.hosts + 1)
        for name in [self.middle] + [self.host(n) for n in everyone]:
            run(["ip", "netns", "add", name])
            self.made.append(name)
        run(["ip", "netns", "exec", self.middle, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])
        orders = ["link set lo up"]
        for n in everyone:
            orders.append(f"link add p{n} type veth peer name eth0 netns {self.host(n)}")
            orders.append(f"link set p{n} up")
            orders.append(f"addr add {GATEWAY}/32 dev p{n}")
            orders.append(f"route add {self.address(n)}/32 dev p{n}")
        run(["ip", "-n", self.middle, "-batch", "-"], "\n".join(orders))
        for n in everyone:
            orders = f"addr add {self.address(n)}/32 dev eth0\nlink set eth0 up\nlink set lo up\n"
            orders += f"route add {GATEWAY}/32 dev eth0\nroute add default via {GATEWAY} dev eth0 src {self.address(n)}\n"
            run(["ip", "-n", self.host(n), "-batch", "-"], orders)
        if self.zones > 1:
            self.part(everyone, delay_ms)
        self.nft(
            "table ip seen {\n counter c_udp { }\n counter c_tcp { }\n"
            "chain c_all { type filter hook forward priority -10;\n"
            "ip protocol udp counter name c_udp\n ip protocol tcp counter name c_tcp\n }\n }"
        )

    def part(self, everyone, delay_ms):
        """What comes from a host and is not for its own zone goes through the relay and back."""
        words = [sys.executable, str(pathlib.Path(__file__).with_name("relay.py")), str(delay_ms)]
        self.relay = subprocess.Popen(words, preexec_fn=into(self.middle), stdout=subprocess.PIPE, text=True)
        # It says a word once its device is there.
        if self.relay.stdout.readline().strip() != "ready":
            raise RuntimeError("the relay between the zones did not start (it needs /dev/net/tun)")
        orders = []
        for zone in range(self.zones):
            orders.append(f"route add default dev slow table {ZONE_TABLE + zone}")
        for n in everyone:
            table = ZONE_TABLE + self.zone(n)
            orders.append(f"route add {self.address(n)}/32 dev p{n} table {table}")
            orders.append(f"rule add iif p{n} lookup {table}")
        run(["ip", "-n", self.middle, "-batch", "-"], "\n".join(orders))

    def host(self, n):
        return f"{self.prefix}{n}"

    def address(self, n):
        return f"{self.net}.{n}"

    def zone(self, n):
        return (n - 1) % self.zones

    def nft(self, text):
        return run(["ip", "netns", "exec", self.middle, "nft", "-f", "-"], text + "\n")

    # ---- what goes wrong ----

    @contextlib.contextmanager
    def rules(self, *rules):
        """Packets on their way meet these rules for a while."""
        self.cuts += 1
        table = f"cut{self.cuts}"
        lines = "\n".join(rules)
        self.nft(f"table ip {table} {{\n chain c_all {{ type filter hook forward priority 0;\n{lines}\n }}\n }}")
        try:
            yield
        finally:
            self.nft(f"delete table ip {table}")

    def loss(self, percent):
        return self.rules(f"numgen random mod 100 < {percent} drop")

    def deaf(self, n, protocol=None):
        """Host `n` is sent nothing any more, or nothing of one protocol; what it sends goes out."""
        what = f"ip protocol {protocol}" if protocol else ""
        return self.rules(f'oifname "p{n}" {what} drop')

    def mute(self, n, protocol=None):
        """Host `n` sends nothing any more, or nothing of one protocol; what is sent to it comes in."""
        what = f"ip protocol {protocol}" if protocol else ""
        return self.rules(f'iifname "p{n}" {what} drop')

    def partition(self, ones, others):
        quoted = [", ".join(f'"p{n}"' for n in side) for side in (ones, others)]
        a, b = quoted
        return self.rules(f"iifname {{ {a} }} oifname {{ {b} }} drop", f"iifname {{ {b} }} oifname {{ {a} }} drop")

    # ---- what is counted ----

    def bytes_seen(self):
        """Packets and bytes (IP headers included) that crossed the router so far, by protocol."""
        text = run(["ip", "netns", "exec", self.middle, "nft", "-j", "list", "counters", "table", "ip", "seen"])
        found = {}
        for item in json.loads(text)["nftables"]:
            if counter := item.get("counter"):
                name = counter["name"].removeprefix("c_")
                head = UDP_HEAD if name == "udp" else TCP_HEAD
                packets, size = counter["packets"], counter["bytes"]
                found[name] = {"packets": packets, "bytes": size, "payload": max(0, size - packets * head)}
        return found

    def listener(self, n, port):
        """A TCP port of host `n` that accepts."""
        with inside(self.host(n)):
            listener = socket.create_server((self.address(n), port), backlog=64)
        listener.setblocking(False)
        return listener

    def close(self):
        if self.relay:
            self.relay.kill()
            self.relay.wait()
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name])
        self.made = []
