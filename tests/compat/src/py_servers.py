"""Servers and clients of Python's libraries: KIND FILE PORT, or KIND URL TIMES AT_ONCE SHA256."""

import asyncio
import hashlib
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HEAD = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"


def serve_asyncio(path, port):
    data = Path(path).read_bytes()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD.format(len(data)).encode() + data)
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(answer, None, int(port))
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        await over.wait()
        server.close()

    asyncio.run(main())


def get_asyncio(url, times, at_once, sha256):
    host = url.split("/")[2]

    async def once():
        reader, writer = await asyncio.open_connection(host, 80)
        writer.write(f"GET /blob HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        check(await reader.read(), sha256)
        writer.close()
        await writer.wait_closed()

    async def main():
        limit = asyncio.Semaphore(at_once)

        async def limited():
            async with limit:
                await once()

        await asyncio.gather(*(limited() for _ in range(times)))

    asyncio.run(main())


def serve_uvloop(path, port):
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    serve_asyncio(path, port)


def get_uvloop(*words):
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    get_asyncio(*words)


def serve_twisted(path, port):
    from twisted.internet import reactor
    from twisted.web import server, static

    root = static.Data(b"", "text/plain")
    root.putChild(b"blob", static.File(path))
    reactor.listenTCP(int(port), server.Site(root))
    reactor.run()


def get_twisted(url, times, at_once, sha256):
    from twisted.internet import defer, task
    from twisted.web import client

    async def once(reactor):
        response = await client.Agent(reactor).request(b"GET", url.encode())
        check(await client.readBody(response), sha256)

    def main(reactor):
        limit = defer.DeferredSemaphore(at_once)
        return defer.gatherResults([limit.run(lambda: defer.ensureDeferred(once(reactor))) for _ in range(times)])

    task.react(main)


def get_requests(url, times, at_once, sha256):
    import urllib.request

    def once(_):
        with urllib.request.urlopen(url, timeout=60) as answer:
            check(answer.read(), sha256)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(once, range(times)))


def check(data, sha256):
    assert hashlib.sha256(data).hexdigest() == sha256, f"{len(data)} bytes with another digest"


kind, *words = sys.argv[1:]
if kind.startswith("get"):
    words[1:3] = map(int, words[1:3])
globals()[kind](*words)
