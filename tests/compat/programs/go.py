"""Go's net and net/http, without cgo: its own resolver, its own use of system calls."""

from support.needs import build_go

from ..program import Program
from ..scene import SOURCES, Scene

GO = Program("Go", "deb:golang-go")
SOURCE = SOURCES / "http_go.go"


def _build(scene: Scene) -> list[str]:
    source = scene.source("http_go.go")
    target = scene.tools / "http_go"
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        build_go(str(source), scene.work / "built", scene.tools / "go-cache")
        (scene.work / "built").rename(target)
    return [str(target)]


@GO.case("net/http, net/http")
def http(scene: Scene) -> None:
    program = _build(scene)
    server = scene.server("web", [*program, "serve", f"{scene.work}/blob", "80"], 80)
    scene.loops([*program, "get", "http://web/blob"])
    scene.stop(server)


@GO.case("net.ListenPacket, net.Dial over UDP", udp=True)
def udp(scene: Scene) -> None:
    program = _build(scene)
    server = scene.server("pieces", [*program, "serve-udp", f"{scene.work}/blob", "7000"], 7000)
    scene.loops([*program, "get-udp", "pieces:7000"])
    scene.stop(server)
