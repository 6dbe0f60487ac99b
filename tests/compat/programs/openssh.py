"""OpenSSH: a command, scp and a tunnel."""

from ..program import Program
from ..scene import Scene
from .nginx import STATIC
from .nginx import command as nginx

OPENSSH = Program("OpenSSH", "deb:openssh-server", "deb:openssh-client")

CONF = """
Port 22
HostKey $work/host
AuthorizedKeysFile $work/user.pub
StrictModes no
PasswordAuthentication no
PidFile none
UsePAM no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp
"""


def _start(scene: Scene) -> list[str]:
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scene.work / name)]
        scene.client(make, at="servers", trace=False)
    key = scene.client_work / "key"
    key.write_bytes((scene.work / "user").read_bytes())
    key.chmod(0o600)
    # It wants to be called by its absolute name, for it executes itself for every connection.
    return ["sh", "-c", f"mkdir -p /run/sshd; exec /usr/sbin/sshd -D -e -f {scene.write('sshd.conf', CONF)}"]


def _options(scene: Scene) -> list[str]:
    settings = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
    return ["-F/dev/null", f"-i{scene.client_work}/key", *(f"-o{key}={value}" for key, value in settings.items())]


@OPENSSH.case("sshd, ssh")
def ssh(scene: Scene) -> None:
    server = scene.server("box", _start(scene), 22)
    scene.moves(["ssh", *_options(scene), "root@box", f"cat {scene.work}/blob"])
    scene.stop(server)


@OPENSSH.case("sshd, scp")
def scp(scene: Scene) -> None:
    server = scene.server("box", _start(scene), 22)
    copy = f"scp -q {' '.join(_options(scene))} root@box:{scene.work}/blob got$N"
    scene.moves(["sh", "-c", f"{copy} && cat got$N"])
    scene.stop(server)


@OPENSSH.case("tunnel (ssh -L) to nginx, curl", "deb:nginx-light", "deb:curl")
def tunnel(scene: Scene) -> None:
    scene.server("web", nginx(scene, "web", STATIC.replace("PORT", "80")), 80)
    server = scene.server("box", _start(scene), 22, trace=True)
    words = ["ssh", *_options(scene), "-N", "-L", "*:8080:web:80", "root@box"]
    scene.server("tunnel", words, 8080, at="clients", trace=True)
    scene.moves(["curl", "-sSf", "http://tunnel:8080/blob"])
    scene.stop(server)
