"""A gRPC server for the stories, without generated code: messages are plain bytes.

    grpc_server.py ADDRESS:PORT

Methods of `stories.Echo`: Unary, Split (one message to many), Join (many to one), Chat (many to many, one by one),
Late (waits for its deadline or its cancellation), Refuse (no message, only a status), Ended (how many Late calls ended
early). Serves grpc.health.v1 beside them.
"""

import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

MESSAGE_BYTES_MAX = 32 * 1024 * 1024

ended_early = 0
ended_lock = threading.Lock()


def unary(message, context):
    context.send_initial_metadata((("x-seen", dict(context.invocation_metadata()).get("x-sent", "")),))
    context.set_trailing_metadata((("x-bytes", str(len(message))),))
    return message


def split(message, context):
    for part in message.split(b","):
        yield part


def join(messages, context):
    return b",".join(messages)


def chat(messages, context):
    for message in messages:
        yield b"heard " + message


def late(message, context):
    global ended_early
    over = threading.Event()
    context.add_callback(over.set)
    context.send_initial_metadata((("x-left", str(context.time_remaining())),))
    over.wait(30)
    with ended_lock:
        ended_early += 1
    return b"too late"


def refuse(message, context):
    context.set_trailing_metadata((("x-why", message.decode()),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def ended(message, context):
    with ended_lock:
        return str(ended_early).encode()


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=16),
        options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.max_send_message_length", MESSAGE_BYTES_MAX)],
    )
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Split": grpc.unary_stream_rpc_method_handler(split),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Late": grpc.unary_unary_rpc_method_handler(late),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Ended": grpc.unary_unary_rpc_method_handler(ended),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("stories.Echo", methods),))
    servicer = health.HealthServicer()
    servicer.set("stories.Echo", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if server.add_insecure_port(sys.argv[1]) == 0:
        sys.exit(f"cannot bind {sys.argv[1]}")
    server.start()
    server.wait_for_termination()


main()
