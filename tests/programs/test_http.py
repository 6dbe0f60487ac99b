"""Every HTTP server with every HTTP client, by name; what arrives is compared with what is served."""

import hashlib
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.needs import find, need
from support.program import Program, wait_until
from support.switch import Switch

Argv = list[str | os.PathLike[str]]

_PYTHON_GET = (
    "import shutil, sys, urllib.request as r; shutil.copyfileobj(r.urlopen(sys.argv[1]), sys.stdout.buffer)"
)

_NGINX = """
worker_processes 2;
pid {work}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log {work}/access.log;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  sendfile on;
  server {{
    listen 80;
    listen [::]:80;
    root {site};
    location = /worker {{ return 200 "$pid $remote_addr\\n"; }}
  }}
}}
"""


def nginx(switch: Switch, site: Path) -> Argv:
    config = switch.work / "nginx.conf"
    config.write_text(_NGINX.format(work=switch.work, site=site))
    # -e: before it has read its configuration it would open /var/log/nginx/error.log.
    return [need("nginx"), "-e", "stderr", "-c", config, "-g", "daemon off;"]


@pytest.fixture
def servers(request: pytest.FixtureRequest, site: Path, python: str) -> dict[str, Callable[[Switch], Argv]]:
    """How to start each server, serving the site on port 80."""
    return {
        "python": lambda switch: [python, "-m", "http.server", "80", "--directory", site],
        "nginx": lambda switch: nginx(switch, site),
        "busybox": lambda switch: [need("busybox"), "httpd", "-f", "-p", "80", "-h", site],
        "go": lambda switch: [request.getfixturevalue("go_http"), "serve", ":80", site],
        "node": lambda switch: [need("node"), request.getfixturevalue("node_http"), "serve", "80", site],
    }


@pytest.fixture
def clients(request: pytest.FixtureRequest, python: str) -> dict[str, Argv]:
    """How to fetch a URL to standard output, with every client that is here."""
    found: dict[str, Argv] = {"python": [python, "-c", _PYTHON_GET]}
    if curl := find("curl"):
        found["curl"] = [curl, "--silent", "--show-error", "--fail"]
    if busybox := find("busybox"):
        found["busybox"] = [busybox, "wget", "-q", "-O", "-"]
    if find("go"):
        found["go"] = [request.getfixturevalue("go_http"), "get"]
    if node := find("node"):
        found["node"] = [node, request.getfixturevalue("node_http"), "get"]
    return found


@pytest.mark.parametrize("server", ["python", "nginx", "busybox", "go", "node"])
def test_clients_get_what_the_server_serves(
    switch: Switch,
    server: str,
    servers: dict[str, Callable[[Switch], Argv]],
    clients: dict[str, Argv],
    digest: str,
) -> None:
    switch.run(servers[server](switch), name="web")
    switch.wait_service("web", 80)
    running: dict[str, Program] = {
        client: switch.run([*argv, "http://web/blob"]) for client, argv in clients.items()
    }
    for program in running.values():
        program.wait()
    wrong = {
        client: str(program)[-2000:]
        if program.returncode
        else f"{len(program.output_bytes())} bytes, not the blob"
        for client, program in running.items()
        if program.returncode or hashlib.sha256(program.output_bytes()).hexdigest() != digest
    }
    assert not wrong


def test_nginx_workers_share_the_listener_and_see_the_client(switch: Switch, site: Path) -> None:
    """Prefork: the master listens, its two workers accept; both are told the client's virtual address."""
    master = switch.run(nginx(switch, site), name="web")
    switch.wait_service("web", 80)
    # Each URL is asked for over a connection of its own.
    urls = ["http://web/worker"] * 40
    answers = switch.check(
        [need("curl"), "--silent", "--fail", "--header", "Connection: close", *urls],
        ip="100.64.200.7",
        status=0,
    ).stdout.splitlines()
    assert len(answers) == len(urls)
    children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
    # One may have answered all while the master was about to start the other.
    wait_until(lambda: len(children.read_text().split()) == 2, lambda: f"two workers: {children.read_text()}")
    workers = children.read_text().split()
    assert {answer.split()[0] for answer in answers} <= set(workers)
    if switch.virtual:
        assert {answer.split()[1] for answer in answers} == {"100.64.200.7"}


def test_a_client_without_name_or_address_is_seen_as_link_local(
    switch: Switch, site: Path, python: str
) -> None:
    server = switch.run([python, "-u", "-m", "http.server", "80", "--directory", site], name="web")
    switch.wait_service("web", 80)
    switch.check([need("curl"), "--silent", "--fail", "--output", "/dev/null", "http://web/blob"], status=0)
    client = ipaddress.ip_address(
        server.wait_output(r'(\S+) - - .*"GET /blob').group(1).removeprefix("::ffff:")
    )
    if switch.virtual:
        assert client.is_link_local
