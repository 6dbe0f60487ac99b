"""NATS."""

from ..program import Program
from ..scene import Scene

NATS = Program("NATS", "deb:nats-server")


@NATS.case("publish and subscribe, nats-py", "pypi:nats-py")
def nats(scene: Scene) -> None:
    config = scene.write("nats.conf", "port: 4222\nmax_payload: 4MB\n")
    server = scene.server("bus", ["nats-server", "-c", str(config)], 4222)
    scene.loops([f"{scene.venv}/python", scene.source("nats_loop.py"), f"{scene.client_work}/blob"])
    scene.stop(server)
