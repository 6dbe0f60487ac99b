"""memcached."""

from ..program import Program
from ..scene import Scene

MEMCACHED = Program("memcached", "deb:memcached")


@MEMCACHED.case("set and get, libmemcached's tools", "deb:libmemcached-tools")
def cache(scene: Scene) -> None:
    server = scene.server("cache", ["memcached", "-u", "nobody", "-I", "4m", "-t", "2"], 11211)
    scene.client(["memccp", "--servers=cache", str(scene.client_work / "text")])
    scene.moves(["memccat", "--servers=cache", "text"], text=True)
    scene.stop(server)


@MEMCACHED.case("no request is trapped", "deb:python3")
def untrapped(scene: Scene) -> None:
    server = scene.server("cache", ["memcached", "-u", "nobody", "-t", "2"], 11211)
    client = [scene.python, str(scene.source("memcached_calls.py")), "cache", "1000"]
    scene.no_traps("1000 requests (set and get by turns)", client)
    scene.stop(server)
