"""FTP: vsftpd and pyftpdlib, with curl and lftp, active and passive."""

from ..program import Program
from ..scene import Effort, Scene

VSFTPD = Program("vsftpd", "deb:vsftpd")
PYFTPDLIB = Program("pyftpdlib", "pypi:pyftpdlib")

CONF = """
listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
anon_root=$work/pub
no_anon_password=YES
local_enable=NO
seccomp_sandbox=NO
isolate_network=NO
secure_chroot_dir=$work/empty
vsftpd_log_file=$work/vsftpd.log
max_per_ip=0
port_enable=YES
pasv_enable=YES
connect_from_port_20=CONNECT20
"""


def _publish(scene: Scene) -> None:
    for name in ("pub", "empty"):
        (scene.work / name).mkdir(mode=0o755)
    (scene.work / "pub" / "blob").write_bytes((scene.work / "blob").read_bytes())
    (scene.work / "pub").chmod(0o555)


def _vsftpd(scene: Scene, connect20: str = "NO") -> list[str]:
    _publish(scene)
    return ["/usr/sbin/vsftpd", str(scene.write("vsftpd.conf", CONF.replace("CONNECT20", connect20), 0o600))]


@VSFTPD.case("passive (EPSV and PASV), curl", "deb:curl")
def passive(scene: Scene) -> None:
    server = scene.server("ftp", _vsftpd(scene), 21)
    scene.moves(["curl", "-sSf", "ftp://ftp/blob"])
    scene.moves(["curl", "-sSf", "--disable-epsv", "ftp://ftp/blob"])
    scene.stop(server)


@VSFTPD.case("active (EPRT and PORT), curl with a name", "deb:curl")
def active(scene: Scene) -> None:
    server = scene.server("ftp", _vsftpd(scene), 21, trace=True)
    scene.moves(["curl", "-sSf", "--ftp-port", "-", "ftp://ftp/blob"], name="client")
    scene.moves(["curl", "-sSf", "--disable-eprt", "--ftp-port", "-", "ftp://ftp/blob"], name="client")
    scene.stop(server)


LFTP = (
    "lftp's resolver is a child process whose SIGCHLD comes while lftp connects. A connect() that a signal ends before "
    "the switch has received it has not begun, and lftp polls instead of calling it again: docs/transparency.md, "
    "Signals. The later the switch gets to run, the likelier: a third of the connects on an overloaded machine"
)


@VSFTPD.case("active from port 20, lftp with a name", "deb:lftp", remark=LFTP)
def active20(scene: Scene) -> None:
    server = scene.server("ftp", _vsftpd(scene, "YES"), 21)
    script = "set ftp:passive-mode no; set net:max-retries 1; open ftp://ftp; cat blob"
    scene.moves(["lftp", "-c", script], name="client")
    scene.stop(server)


def _pyftpdlib(scene: Scene) -> list[str]:
    _publish(scene)
    return [f"{scene.venv}/python", "-m", "pyftpdlib", "-p", "21", "-d", f"{scene.work}/pub"]


@PYFTPDLIB.case("passive, curl", "deb:curl")
def python_passive(scene: Scene) -> None:
    server = scene.server("ftp", _pyftpdlib(scene), 21)
    scene.moves(["curl", "-sSf", "ftp://ftp/blob"])
    scene.stop(server)


@PYFTPDLIB.case("active, curl with a name, one at a time", "deb:curl")
def python_active(scene: Scene) -> None:
    # With several at once the server forgets sessions, natively too: it takes a descriptor that was closed and
    # given to somebody else out of its epoll (2.2.0).
    server = scene.server("ftp", _pyftpdlib(scene), 21, trace=True)
    effort = Effort(scene.effort.one_after_the_other, 1)
    scene.moves(["curl", "-sSf", "--ftp-port", "-", "ftp://ftp/blob"], name="client", effort=effort)
    scene.stop(server)
