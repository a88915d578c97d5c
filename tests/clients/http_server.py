"""An HTTP server for the stories (aiohttp).

    http_server.py ADDRESS PORT

/echo answers what it got; /pieces streams N pieces of the asked size; /events is an event stream; /chat a WebSocket
that answers every message; /none a 204; /slow answers after the asked time.
"""

import asyncio
import sys

from aiohttp import WSMsgType, web

BODY_BYTES_MAX = 128 * 1024 * 1024


async def echo(request):
    body = await request.read()
    if "digest" in request.query:
        return web.json_response({"bytes": len(body), "sum": sum(body) % 65521})
    headers = {"x-method": request.method, "x-query": request.rel_url.raw_query_string}
    return web.Response(body=body, headers=headers, content_type="application/octet-stream")


async def pieces(request):
    answer = web.StreamResponse()
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    for _ in range(int(request.query["count"])):
        await answer.write(b"p" * int(request.query["bytes"]))
    await answer.write_eof()
    return answer


async def events(request):
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    for number in range(3):
        await answer.write(f"data: {number}\n\n".encode())
    await answer.write_eof()
    return answer


async def chat(request):
    socket = web.WebSocketResponse(max_msg_size=BODY_BYTES_MAX)
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str("heard " + message.data)
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def none(request):
    return web.Response(status=204)


async def slow(request):
    await asyncio.sleep(float(request.query["seconds"]))
    return web.Response(text="at last")


app = web.Application(client_max_size=BODY_BYTES_MAX)
app.router.add_route("*", "/echo", echo)
app.router.add_get("/pieces", pieces)
app.router.add_get("/events", events)
app.router.add_get("/chat", chat)
app.router.add_get("/none", none)
app.router.add_get("/slow", slow)
web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), print=None)
