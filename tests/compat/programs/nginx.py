"""nginx: static files, as a proxy, and its ways of being replaced."""

import os
import signal
from pathlib import Path

from ..program import Program
from ..scene import SIZE, Scene

NGINX = Program("nginx", "deb:nginx-light")

CONF = """
worker_processes 2;
pid $work/nginx.pid;
error_log stderr;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path $work/body;
  proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi;
  scgi_temp_path $work/scgi;
  sendfile on;
  HTTP
}
"""
STATIC = "server { listen PORT; listen [::]:PORT; root $work; }"


def command(scene: Scene, name: str, http: str) -> list[str]:
    """An nginx with this `http` block, in the foreground."""
    config = scene.write(f"{name}.conf", CONF.replace("HTTP", http).replace("nginx.pid", f"{name}.pid"))
    # -e: before it has read its configuration it would open /var/log/nginx/error.log.
    # By its path, for it executes itself when it is upgraded.
    return ["/usr/sbin/nginx", "-e", "stderr", "-c", str(config), "-g", "daemon off; user root;"]


@NGINX.case("static files, curl", "deb:curl")
def static(scene: Scene) -> None:
    server = scene.server("web", command(scene, "web", STATIC.replace("PORT", "80")), 80)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@NGINX.case("reverse proxy to nginx, curl", "deb:curl")
def proxy(scene: Scene) -> None:
    scene.server("inner", command(scene, "inner", STATIC.replace("PORT", "8080")), 8080)
    http = (
        "upstream inner { server inner:8080; keepalive 4; } server { listen 80; location / "
        '{ proxy_pass http://inner; proxy_http_version 1.1; proxy_set_header Connection ""; } }'
    )
    server = scene.server("web", command(scene, "web", http), 80, trace=True)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@NGINX.case("`listen … reuseport`, curl", "deb:curl")
def reuseport(scene: Scene) -> None:
    http = "server { listen 80 reuseport; root $work; location = /who { return 200 $pid; } }"
    server = scene.server("web", command(scene, "web", http), 80)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    ask = "for i in $(seq 40); do curl -sSf http://web/who; echo; done | sort -u | wc -l"
    workers = scene.client(["sh", "-c", ask]).strip()
    assert workers == "2", f"{workers} of 2 workers were given connections"
    scene.stop(server)


def _generations() -> str:
    return "server { listen 80; root $work; location = /who { return 200 N; } }"


@NGINX.case("reload under load, curl", "deb:curl")
def reload(scene: Scene) -> None:
    server = scene.server("web", command(scene, "web", _generations().replace("N", "1")), 80)
    assert scene.client(["curl", "-sSf", "http://web/who"]) == "1"
    slow = scene.background(["curl", "-sSf", "--limit-rate", "400k", "http://web/blob"])
    load = scene.background(scene.repeated(["curl", "-sSf", "http://web/blob"], 100, 2))
    command(scene, "web", _generations().replace("N", "2"))
    server.send_signal(signal.SIGHUP)
    scene.until(lambda: scene.client(["curl", "-sSf", "http://web/who"], trace=False) == "2", "the new configuration")
    assert load.wait() == 0, load.errors()
    assert slow.wait() == 0, slow.errors()
    assert len(slow.output_bytes()) == SIZE
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@NGINX.case("binary upgrade under load (USR2, QUIT), curl", "deb:curl")
def upgrade(scene: Scene) -> None:
    # Not in the foreground: there it is not upgraded. The process that was started ends at once.
    argv = [*command(scene, "web", _generations().replace("N", "1"))[:-1], "user root;"]
    pid_file = scene.work / "web.pid"
    assert scene.server("web", argv).wait() == 0
    scene.until(lambda: _pid(pid_file) != 0, "the first master")
    old = _pid(pid_file)
    load = scene.background(scene.repeated(["curl", "-sSf", "http://web/blob"], 100, 2))
    command(scene, "web", _generations().replace("N", "2"))
    os.kill(old, signal.SIGUSR2)
    scene.until(lambda: _pid(pid_file) not in (0, old), "the new master")
    new = _pid(pid_file)
    scene.until(lambda: scene.client(["curl", "-sSf", "http://web/who"], trace=False) == "2", "the new master's answer")
    scene.stop_pid(old, signal.SIGQUIT)
    assert load.wait() == 0, load.errors()
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop_pid(new)


def _pid(file: Path) -> int:
    """Of a master; 0 while the file is not there (it is renamed during an upgrade) or not yet written."""
    try:
        return int(file.read_text() or 0)
    except FileNotFoundError:
        return 0
