"""Calls http_server.py through a sidecar with aiohttp, many at once and by WebSocket, then with `websockets`; prints
"fine".

    aiohttp_client.py PROXY:PORT AUTHORITY
"""

import asyncio
import sys

import aiohttp
import websockets

proxy, authority = sys.argv[1:3]
base = f"http://{proxy}"
headers = {"host": authority}


async def main():
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(number):
            async with session.post(f"{base}/echo?n={number}", data=str(number).encode() * 1000) as answer:
                assert answer.status == 200, answer
                assert await answer.read() == str(number).encode() * 1000
                assert answer.headers["x-query"] == f"n={number}", answer.headers

        await asyncio.gather(*(one(number) for number in range(300)))

        async def parts():
            for _ in range(100):
                yield b"z" * 10_000

        async with session.post(f"{base}/echo?digest=1", data=parts()) as answer:
            assert (await answer.json())["bytes"] == 1_000_000
        # A client that gives up leaves nothing behind that hurts others.
        try:
            await session.get(f"{base}/slow?seconds=20", timeout=aiohttp.ClientTimeout(total=0.2))
            raise AssertionError("it waited")
        except asyncio.TimeoutError:
            pass
        async with session.ws_connect(f"{base}/chat") as socket:
            for number in range(100):
                await socket.send_str(str(number))
                assert (await socket.receive_str(timeout=20)) == f"heard {number}"
            await socket.send_bytes(bytes(1_000_000))
            assert len(await socket.receive_bytes(timeout=20)) == 1_000_000

    # The name stands in the URL here, and the address beside it: the handshake is the library's own.
    host, port = proxy.rsplit(":", 1)
    async with websockets.connect(f"ws://{authority}/chat", host=host, port=int(port), max_size=None) as socket:
        for number in range(100):
            await socket.send(str(number))
            assert await asyncio.wait_for(socket.recv(), 20) == f"heard {number}"
        await socket.send(bytes(2_000_000))
        assert len(await asyncio.wait_for(socket.recv(), 20)) == 2_000_000
        await asyncio.wait_for(await socket.ping(), 20)
    assert socket.close_code == 1000, socket.close_code


asyncio.run(main())
print("fine")
