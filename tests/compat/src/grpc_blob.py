"""gRPC without generated code: KIND FILE PORT, or KIND HOST:PORT TIMES AT_ONCE SHA256.

A unary call for each; `calls` makes them all over one channel.
"""

import asyncio
import hashlib
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

LIMITS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]
OWN = [*LIMITS, ("grpc.use_local_subchannel_pool", 1)]
METHOD = "/Blob/Get"


def handler(answer):
    method = grpc.unary_unary_rpc_method_handler(answer)
    return grpc.method_handlers_generic_handler("Blob", {"Get": method})


def serve_sync(path, port):
    data = Path(path).read_bytes()
    server = grpc.server(ThreadPoolExecutor(10), options=LIMITS)
    server.add_generic_rpc_handlers((handler(lambda request, context: data if request == b"all" else request),))
    assert server.add_insecure_port(f"[::]:{port}")
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(1).wait()


def serve_aio(path, port):
    data = Path(path).read_bytes()

    async def answer(request, context):
        return data if request == b"all" else request

    async def main():
        server = grpc.aio.server(options=LIMITS)
        server.add_generic_rpc_handlers((handler(answer),))
        assert server.add_insecure_port(f"[::]:{port}")
        await server.start()
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        await over.wait()
        await server.stop(1)

    asyncio.run(main())


def get_sync(where, times, at_once, sha256):
    def once(_):
        with grpc.insecure_channel(where, options=OWN) as channel:
            check(channel.unary_unary(METHOD)(b"all", timeout=60), sha256)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(once, range(times)))


def get_aio(where, times, at_once, sha256):
    async def main():
        limit = asyncio.Semaphore(at_once)

        async def once():
            async with limit, grpc.aio.insecure_channel(where, options=OWN) as channel:
                check(await channel.unary_unary(METHOD)(b"all", timeout=60), sha256)

        await asyncio.gather(*(once() for _ in range(times)))

    asyncio.run(main())


def get_calls(where, times, *_):
    """Says `ready` when connected, then makes the calls for each line that it reads."""
    with grpc.insecure_channel(where, options=OWN) as channel:
        call = channel.unary_unary(METHOD)
        call(b"first", timeout=60)
        print("ready", flush=True)
        for _ in sys.stdin:
            for number in range(times):
                assert call(b"x" * number, timeout=60) == b"x" * number
            print("done", flush=True)


def check(data, sha256):
    assert hashlib.sha256(data).hexdigest() == sha256, f"{len(data)} bytes with another digest"


if sys.argv[1] == "serve_sync":
    # Before any thread starts, so that the signal comes to who waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
kind, *words = sys.argv[1:]
if kind.startswith("get"):
    words[1:3] = map(int, words[1:3])
globals()[kind](*words)
