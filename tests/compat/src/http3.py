"""HTTP/3 by aioquic: serve FILE PORT CERTIFICATE KEY, or get HOST:PORT CERTIFICATE TIMES AT_ONCE SHA256."""

import asyncio
import hashlib
import signal
import sys
from pathlib import Path

from aioquic import asyncio as quic
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated


async def serve(path, port, certificate, key):
    data = Path(path).read_bytes()

    class Server(quic.QuicConnectionProtocol):
        def quic_event_received(self, event):
            if not hasattr(self, "http"):
                self.http = H3Connection(self._quic)
            for told in self.http.handle_event(event):
                if isinstance(told, HeadersReceived):
                    self.http.send_headers(told.stream_id, [(b":status", b"200")])
                    self.http.send_data(told.stream_id, data, end_stream=True)
                    self.transmit()

    settings = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    settings.load_cert_chain(certificate, key)
    server = await quic.serve("0.0.0.0", int(port), configuration=settings, create_protocol=Server)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    server.close()


class Client(quic.QuicConnectionProtocol):
    """Asks once; `body` is done when all of it is there."""

    def __init__(self, *words, **settings):
        super().__init__(*words, **settings)
        self.http = H3Connection(self._quic)
        self.digest = hashlib.sha256()
        self.body = asyncio.get_running_loop().create_future()

    def ask(self, host):
        stream = self._quic.get_next_available_stream_id()
        words = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", b"/blob")]
        self.http.send_headers(stream, words, end_stream=True)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated) and not self.body.done():
            self.body.set_exception(ConnectionError(event.reason_phrase))
        for told in self.http.handle_event(event):
            if isinstance(told, DataReceived):
                self.digest.update(told.data)
                if told.stream_ended:
                    self.body.set_result(self.digest.hexdigest())


async def get(where, certificate, times, at_once, sha256):
    host, port = where.split(":")
    limit = asyncio.Semaphore(int(at_once))

    async def once():
        settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
        settings.load_verify_locations(certificate)
        async with limit, quic.connect(host, int(port), configuration=settings, create_protocol=Client) as client:
            client.ask(host)
            assert await asyncio.wait_for(client.body, 60) == sha256, "another digest"

    await asyncio.gather(*(once() for _ in range(int(times))))


kind, *words = sys.argv[1:]
asyncio.run({"serve": serve, "get": get}[kind](*words))
