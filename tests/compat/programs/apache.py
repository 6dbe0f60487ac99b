"""Apache httpd with its event and prefork modules."""

from ..program import Program
from ..scene import Scene

APACHE = Program("Apache httpd", "deb:apache2")

CONF = """
ServerRoot /usr/lib/apache2
ServerName web
PidFile $work/apache.pid
DefaultRuntimeDir $work
Mutex file:$work default
LoadModule mpm_KIND_module modules/mod_mpm_KIND.so
LoadModule authz_core_module modules/mod_authz_core.so
ErrorLog /dev/stderr
User nobody
Group nogroup
Listen 80
DocumentRoot $work
<Directory $work>
  Require all granted
</Directory>
"""


def _command(scene: Scene, kind: str) -> list[str]:
    return ["/usr/sbin/apache2", "-DFOREGROUND", "-f", str(scene.write("apache.conf", CONF.replace("KIND", kind)))]


@APACHE.case("event, curl", "deb:curl")
def event(scene: Scene) -> None:
    server = scene.server("web", _command(scene, "event"), 80)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@APACHE.case("prefork, wget", "deb:wget")
def prefork(scene: Scene) -> None:
    server = scene.server("web", _command(scene, "prefork"), 80)
    scene.moves(["wget", "-qO-", "http://web/blob"])
    scene.stop(server)


@APACHE.case("event, ab with and without keep-alive", "deb:apache2-utils")
def bench(scene: Scene) -> None:
    server = scene.server("web", _command(scene, "event"), 80)
    for words in ([], ["-k"]):
        told = scene.client(["ab", "-q", *words, "-n", "200", "-c", "10", "http://web/blob"])
        assert "Complete requests:      200" in told, told
        assert "Failed requests:        0" in told, told
    scene.stop(server)
