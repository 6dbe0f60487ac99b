"""The rsync daemon."""

from ..program import Program
from ..scene import Scene

RSYNC = Program("rsync", "deb:rsync")

CONF = """
use chroot = no
uid = root
gid = root
[files]
path = $work
"""


@RSYNC.case("daemon, rsync")
def daemon(scene: Scene) -> None:
    config = scene.write("rsyncd.conf", CONF)
    server = scene.server("files", ["rsync", "--daemon", "--no-detach", f"--config={config}"], 873)
    got = f"{scene.client_work}/got$N"
    scene.moves(["sh", "-c", f"rsync --ignore-times rsync://files/files/blob {got} && cat {got}"])
    scene.stop(server)
