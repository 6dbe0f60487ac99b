"""Web of the paper's Figure 1: answers every request with what App says. It knows nothing of AppSwitch.

It reaches App as on a single host: at localhost, port 8080. `/database` makes it try the database itself.
"""

import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_connection


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            if self.path == "/database":
                create_connection(("localhost", 6379), timeout=10).close()
                answer = "the database lets web in\n"
            else:
                with urllib.request.urlopen("http://localhost:8080/", timeout=10) as said:
                    answer = f"web {os.getpid()}, {said.read().decode()}"
            self.send_response(200)
        except OSError as error:
            answer = f"web {os.getpid()}: {error}\n"
            self.send_response(502)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        """No log."""


ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
