"""The blob, as a WSGI and as an ASGI application."""

import os
from pathlib import Path

DATA = Path(os.environ["BLOB"]).read_bytes()


def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", str(len(DATA)))])
    return [DATA]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(DATA))]})
    await send({"type": "http.response.body", "body": DATA})
