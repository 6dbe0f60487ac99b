"""Ruby, Perl, PHP and Erlang."""

from ..program import Program
from ..scene import Scene
from .nginx import STATIC
from .nginx import command as nginx

RUBY = Program("Ruby", "deb:ruby3.1")
PERL = Program("Perl", "deb:perl")
PHP = Program("PHP", "deb:php8.2-cli")
ERLANG = Program("Erlang", "deb:erlang-base")


@RUBY.case("TCPServer with threads, Net::HTTP")
def ruby(scene: Scene) -> None:
    source = scene.source("http_ruby.rb")
    server = scene.server("web", ["ruby", source, "serve", f"{scene.work}/blob", "80"], 80)
    scene.loops(["ruby", source, "get", "http://web/blob"])
    scene.stop(server)


@PERL.case("IO::Socket::IP with fork, HTTP::Tiny")
def perl(scene: Scene) -> None:
    source = scene.source("http_perl.pl")
    server = scene.server("web", ["perl", source, "serve", f"{scene.work}/blob", "80"], 80)
    scene.loops(["perl", source, "get", "http://web/blob"])
    scene.stop(server)


@PHP.case("built-in server, curl", "deb:curl")
def php_server(scene: Scene) -> None:
    server = scene.server("web", ["php", "-q", "-S", "0.0.0.0:80", "-t", str(scene.work)], 80)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@PHP.case("nginx, stream_socket_client", "deb:nginx-light")
def php_client(scene: Scene) -> None:
    server = scene.server("web", nginx(scene, "web", STATIC.replace("PORT", "80")), 80)
    scene.loops(["php", scene.source("http_php.php"), "http://web/blob"])
    scene.stop(server)


def _erl(scene: Scene, *words: str) -> list[str]:
    """A command that calls web:main/1."""
    arguments = ", ".join(f'"{word}"' for word in words)
    return ["erl", "-noshell", "-pa", str(scene.work), "-eval", f"web:main([{arguments}])."]


_LOOP = """exec erl -noshell -pa $HERE -eval "web:main([\\"$KIND\\", \\"$WHERE\\", \\"$1\\", \\"$2\\", \\"$3\\"])." """


def _compile(scene: Scene) -> None:
    scene.client(["erlc", scene.source("web.erl")], trace=False)
    beam = (scene.client_work / "web.beam").read_bytes()
    (scene.work / "web.beam").write_bytes(beam)


def _erlang_loops(scene: Scene, kind: str, where: str) -> None:
    env = {"HERE": str(scene.client_work), "KIND": kind, "WHERE": where}
    scene.loops(["sh", "-c", _LOOP, "erl"], env=env)


@ERLANG.case("inets httpd, httpc", "deb:erlang-inets", "deb:erlang-crypto")
def inets(scene: Scene) -> None:
    _compile(scene)
    server = scene.server("web", _erl(scene, "serve", str(scene.work), "80"), 80)
    _erlang_loops(scene, "get", "http://web/blob")
    scene.stop(server)


@ERLANG.case("gen_tcp, gen_tcp", "deb:erlang-inets", "deb:erlang-crypto")
def gen_tcp(scene: Scene) -> None:
    _compile(scene)
    server = scene.server("pipe", _erl(scene, "serve-tcp", f"{scene.work}/blob", "7000"), 7000)
    _erlang_loops(scene, "tcp", "pipe")
    scene.stop(server)
