"""Calls `stories.Echo` (grpc_server.py) through a sidecar in every way gRPC knows; prints "fine".

    grpc_client.py PROXY:PORT AUTHORITY
"""

import queue
import sys
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PATIENCE_S = 20
MESSAGE_BYTES = 16 * 1024 * 1024

channel = grpc.insecure_channel(
    sys.argv[1],
    options=[
        ("grpc.default_authority", sys.argv[2]),
        ("grpc.max_receive_message_length", 2 * MESSAGE_BYTES),
        ("grpc.max_send_message_length", 2 * MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
    ],
)
unary = channel.unary_unary("/stories.Echo/Unary")
split = channel.unary_stream("/stories.Echo/Split")
join = channel.stream_unary("/stories.Echo/Join")
chat = channel.stream_stream("/stories.Echo/Chat")
late = channel.unary_unary("/stories.Echo/Late")
refuse = channel.unary_unary("/stories.Echo/Refuse")
ended = channel.unary_unary("/stories.Echo/Ended")


def check(condition, what):
    if not condition:
        sys.exit(f"not so: {what}")


def until(holds, what):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        check(time.monotonic() < deadline, what)
        time.sleep(0.02)


# One message each way, metadata before and after it.
answer, call = unary.with_call(b"hello", metadata=(("x-sent", "a word"),), timeout=PATIENCE_S)
check(answer == b"hello", answer)
check(("x-seen", "a word") in [tuple(pair) for pair in call.initial_metadata()], call.initial_metadata())
check(("x-bytes", "5") in [tuple(pair) for pair in call.trailing_metadata()], call.trailing_metadata())

# The streams.
check(list(split(b"a,b,c", timeout=PATIENCE_S)) == [b"a", b"b", b"c"], "server streaming")
check(join((str(i).encode() for i in range(100)), timeout=PATIENCE_S).count(b",") == 99, "client streaming")
said = queue.Queue()
heard = chat(iter(said.get, None), timeout=PATIENCE_S)
for word in (b"one", b"two", b"three"):
    # The next word is said only when the last one was answered: nothing on the way may wait for the end.
    said.put(word)
    check(next(heard) == b"heard " + word, word)
said.put(None)
check(list(heard) == [], "the conversation ends")

# Large messages.
large = bytes(MESSAGE_BYTES)
check(unary(large, timeout=PATIENCE_S) == large, "16 MiB both ways")

# A status without any message: trailers only.
try:
    refuse(b"closed", timeout=PATIENCE_S)
    check(False, "refused")
except grpc.RpcError as error:
    check(error.code() == grpc.StatusCode.FAILED_PRECONDITION, error)
    check(error.details() == "not today", error.details())
    check(("x-why", "closed") in [tuple(pair) for pair in error.trailing_metadata()], error.trailing_metadata())

# A deadline reaches the server as what is left of it, and ends the call there too.
began = time.monotonic()
try:
    late(b"", timeout=0.5)
    check(False, "the deadline passes")
except grpc.RpcError as error:
    check(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error)
    check(time.monotonic() - began < 5, "in time")
until(lambda: ended(b"") == b"1", "the server saw the deadline")

# A cancelled call is cancelled at the server.
call = late.future(b"", timeout=PATIENCE_S)
left = dict(tuple(pair) for pair in call.initial_metadata())
check(0 < float(left["x-left"]) <= PATIENCE_S, left)
call.cancel()
until(lambda: ended(b"") == b"2", "the server saw the cancellation")

# Many at once share what there is of connections; a cancelled half does not hurt the other.
calls = [late.future(b"", timeout=PATIENCE_S) for _ in range(8)] + [unary.future(b"x" * n, timeout=PATIENCE_S) for n in range(1000)]
for number, call in enumerate(calls[:8]):
    call.cancel()
check(all(len(call.result()) == n for n, call in enumerate(calls[8:])), "1,000 calls at once")

# Health, asked and watched.
stub = health_pb2_grpc.HealthStub(channel)
request = health_pb2.HealthCheckRequest(service="stories.Echo")
check(stub.Check(request, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING, "healthy")
watch = stub.Watch(request, timeout=PATIENCE_S)
check(next(watch).status == health_pb2.HealthCheckResponse.SERVING, "watched")
watch.cancel()

# Nobody offers this: the sidecar answers as a gRPC server would.
stranger = grpc.insecure_channel(sys.argv[1], options=[("grpc.default_authority", "nobody.mesh"), ("grpc.enable_http_proxy", 0)])
try:
    stranger.unary_unary("/stories.Echo/Unary")(b"", timeout=PATIENCE_S)
    check(False, "nobody answers")
except grpc.RpcError as error:
    check(error.code() == grpc.StatusCode.UNAVAILABLE, error)
print("fine")
