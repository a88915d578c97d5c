"""A slow link in user space, for kernels without netem.

Runs in the namespace of a router: whatever is routed to the device `slow` comes back from it after so many
milliseconds, and is then routed on. Usage: relay.py DELAY_MS
"""

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKETS_MAX = 100_000
PACKET_BYTES_MAX = 2048


def main():
    delay = float(sys.argv[1]) / 1000
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"slow", IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", "slow", "up"], check=True)
    # Every packet waits equally long, so the queue is in order of departure.
    waiting = collections.deque()
    print("ready", flush=True)
    while True:
        pause = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([device], [], [], pause)[0]:
            due = time.monotonic() + delay
            while len(waiting) < PACKETS_MAX:
                try:
                    waiting.append((due, os.read(device, PACKET_BYTES_MAX)))
                except BlockingIOError:
                    break
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            try:
                os.write(device, waiting.popleft()[1])
            except OSError:
                pass


main()
