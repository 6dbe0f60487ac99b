"""Requests per second of nginx under wrk: alone and as a reverse proxy, with new connections and with kept ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .bridge import ADDRESSES, Bridge
from .lab import Lab, free_port, need, wait_listening
from .procs import Unavailable

CASE = "http"
NEW, KEEP_ALIVE = "new connection for each", "keep-alive"
PROXY_NEW, PROXY_KEEP_ALIVE = "reverse proxy, new connection for each", "reverse proxy, keep-alive"
CELLS = (NEW, KEEP_ALIVE, PROXY_NEW, PROXY_KEEP_ALIVE)
NATIVE, BRIDGE, APPSWITCH = "native loopback", "veth + bridge", Lab.APPSWITCH
SERVICE, PROXY = "bench-nginx", "bench-proxy"
PORT = 8080
WORKERS, THREADS, CONNECTIONS = 2, 2, 16
BODY = b"x" * 612  # as long as nginx's own welcome page

Measure = Callable[[str], float]

CONFIG = """\
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {listen};
        {content}
    }}
}}
"""


def parse(text: str) -> float:
    """Requests per second from wrk's report. Raises Unavailable when it tells of errors."""
    found = re.search(r"^Requests/sec:\s*([0-9.]+)", text, re.MULTILINE)
    errors = re.search(r"^\s*(Socket errors:.*|Non-2xx.*)$", text, re.MULTILINE)
    if errors:
        raise Unavailable(f"wrk reports {errors[1].strip()}")
    if not found or float(found[1]) == 0:
        raise Unavailable("wrk got no answer")
    return float(found[1])


def run(lab: Lab) -> None:
    """Measure all ways of asking, native, over a bridge and under AppSwitch."""
    need("nginx", "wrk")
    with ExitStack() as stack:
        variants: dict[str, Measure] = {}
        lab.offer(variants, CASE, CELLS, NATIVE, lambda own: _native(lab, own), stack)
        lab.offer(variants, CASE, CELLS, BRIDGE, lambda own: _bridge(lab, own), stack)
        lab.offer(variants, CASE, CELLS, APPSWITCH, lambda own: _appswitch(lab, own), stack)
        lab.alternate(CASE, CELLS, variants, lambda cell, name, taken: lab.results.put(CASE, cell, name, taken))


def _nginx(lab: Lab, name: str, listen: str, upstream: str = "") -> list[str]:
    """A command that serves the file, or passes each request on by a new connection to `upstream`."""
    folder = lab.folder / f"nginx-{name}"
    (folder / "root").mkdir(parents=True)
    (folder / "root" / "index.html").write_bytes(BODY)
    content = f"location / {{ proxy_pass http://{upstream}; }}" if upstream else f"root {folder}/root;"
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(workers=WORKERS, folder=folder, listen=listen, content=content))
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]


def _wrk(lab: Lab, cell: str, server: str, proxy: str) -> list[str]:
    header = ["-H", "Connection: close"] if cell in (NEW, PROXY_NEW) else []
    host = proxy if cell in (PROXY_NEW, PROXY_KEEP_ALIVE) else server
    # wrk takes whole seconds only.
    seconds = max(1, round(lab.settings.requests_s))
    return ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", *header, f"http://{host}/"]


def _errors(lab: Lab, name: str) -> Path:
    return lab.folder / f"nginx-{name}.err"


def _native(lab: Lab, own: ExitStack) -> Measure:
    hosts = []
    for name in ("native", "native-proxy"):
        port = free_port()
        argv = _nginx(lab, name, f"127.0.0.1:{port}", *hosts[:1])
        server = lab.procs.spawn(argv, err=_errors(lab, name))
        own.callback(lab.procs.stop, server)
        wait_listening(server.pid, port)
        hosts.append(f"127.0.0.1:{port}")
    return lambda cell: parse(lab.procs.run(_wrk(lab, cell, *hosts)))


def _bridge(lab: Lab, own: ExitStack) -> Measure:
    """Server, proxy and client each in a namespace of its own, as containers are."""
    bridge = Bridge(lab.procs, 3)
    hosts = [f"{address}:{PORT}" for address in ADDRESSES[:2]]
    for place, (name, upstream) in enumerate((("bridge", ""), ("bridge-proxy", hosts[0]))):
        argv = _nginx(lab, name, hosts[place], upstream)
        server = lab.procs.spawn([*bridge.ends[place], *argv], err=_errors(lab, name))
        own.callback(lab.procs.stop, server)
        wait_listening(server.pid, PORT)
    return lambda cell: parse(lab.procs.run([*bridge.client, *_wrk(lab, cell, *hosts)]))


def _appswitch(lab: Lab, own: ExitStack) -> Measure:
    switch = own.enter_context(lab.switch())
    for name, upstream in ((SERVICE, ""), (PROXY, SERVICE)):
        argv = switch.run(*_nginx(lab, name, "80", upstream), name=name)
        server = lab.procs.spawn(argv, err=_errors(lab, name), env=switch.env)
        own.callback(lab.procs.stop, server)
        switch.wait_service(name, server)
    return lambda cell: parse(lab.procs.run(switch.run(*_wrk(lab, cell, SERVICE, PROXY)), env=switch.env))
