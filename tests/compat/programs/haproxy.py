"""HAProxy in front of nginx."""

import signal

from ..program import Program
from ..scene import Scene
from .nginx import STATIC
from .nginx import command as nginx

HAPROXY = Program("HAProxy", "deb:haproxy")

CONF = """
global
  stats socket $work/stats
defaults
  mode MODE
  timeout connect 10s
  timeout client 30s
  timeout server 30s
frontend all
  bind :80
  bind :::80
  default_backend inner
  MORE
backend inner
  balance roundrobin
  server one one:8080 check inter 500ms
  server two two:8080 check inter 500ms
"""


def _start(scene: Scene, mode: str, *more: str) -> list[str]:
    for name in ("one", "two"):
        scene.server(name, nginx(scene, name, STATIC.replace("PORT", "8080")), 8080)
    return ["haproxy", *more, "-db" if "-W" not in more else "-q", "-f", str(_config(scene, mode))]


def _config(scene: Scene, mode: str, more: str = "") -> object:
    return scene.write("haproxy.cfg", CONF.replace("MODE", mode).replace("MORE", more))


@HAPROXY.case("HTTP mode with health checks, curl", "deb:nginx-light", "deb:curl")
def http(scene: Scene) -> None:
    server = scene.server("web", _start(scene, "http"), 80, trace=True)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@HAPROXY.case("TCP mode (splice), curl", "deb:nginx-light", "deb:curl")
def tcp(scene: Scene) -> None:
    server = scene.server("web", _start(scene, "tcp\n  option splice-auto"), 80, trace=True)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@HAPROXY.case("reload under load (master and workers, USR2), curl", "deb:nginx-light", "deb:curl")
def reload(scene: Scene) -> None:
    server = scene.server("web", _start(scene, "http", "-W"), 80)
    load = scene.background(scene.repeated(["curl", "-sSf", "http://web/blob"], 100, 2))
    ask = ["curl", "-sSf", "-o/dev/null", "-w%{http_code}", "http://web/nothing"]
    scene.client(ask, status=None)
    _config(scene, "http", "http-request return status 410 if { path /nothing }")
    server.send_signal(signal.SIGUSR2)
    scene.until(lambda: scene.client(ask, status=None, trace=False).endswith("410"), "the new configuration")
    assert load.wait() == 0, load.errors()
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)
