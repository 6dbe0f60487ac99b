"""App of the paper's Figure 1: counts visits in the database, a Redis. It knows nothing of AppSwitch.

It reaches the database as on a single host: at localhost, port 6379.
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_connection


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with create_connection(("localhost", 6379), timeout=10) as database:
            database.sendall(b"INCR visits\r\n")
            visits = database.makefile().readline().strip().removeprefix(":")
        answer = f"app {os.getpid()}, visit {visits}\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        """No log."""


ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
