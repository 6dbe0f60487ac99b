"""Small tools: curl, wget, busybox, socat, netcat."""

from ..program import Program
from ..scene import Scene
from .nginx import STATIC
from .nginx import command as nginx

CURL = Program("curl", "deb:curl")
WGET = Program("wget", "deb:wget")
BUSYBOX = Program("busybox", "deb:busybox-static")
SOCAT = Program("socat", "deb:socat")
NETCAT = Program("netcat-openbsd", "deb:netcat-openbsd")


@CURL.case("parallel transfers and one connection for many, nginx", "deb:nginx-light")
def curl(scene: Scene) -> None:
    server = scene.server("web", nginx(scene, "web", STATIC.replace("PORT", "80")), 80)
    many = [word for number in range(10) for word in ("-o", f"{scene.client_work}/got{number}", "http://web/blob")]
    for words in ([], ["--parallel", "--parallel-immediate"]):
        scene.client(["curl", "-sSf", *words, *many])
        got = {(scene.client_work / f"got{number}").read_bytes() for number in range(10)}
        assert got == {(scene.work / "blob").read_bytes()}, "another digest"
    scene.moves(["curl", "-sSf", "-4", "http://web/blob"])
    scene.stop(server)


@WGET.case("nginx", "deb:nginx-light")
def wget(scene: Scene) -> None:
    server = scene.server("web", nginx(scene, "web", STATIC.replace("PORT", "80")), 80)
    scene.moves(["wget", "-qO-", "http://web/blob"])
    scene.stop(server)


@BUSYBOX.case("httpd, wget")
def httpd(scene: Scene) -> None:
    server = scene.server("web", ["busybox", "httpd", "-f", "-p", "80", "-h", str(scene.work)], 80)
    scene.moves(["busybox", "wget", "-qO-", "http://web/blob"])
    scene.stop(server)


@BUSYBOX.case("nc -ll -e, nc")
def busybox_nc(scene: Scene) -> None:
    server = scene.server("pipe", ["busybox", "nc", "-ll", "-p", "7000", "-e", "cat", str(scene.work / "blob")], 7000)
    scene.moves(["busybox", "nc", "pipe", "7000"])
    scene.stop(server)


@SOCAT.case("TCP-LISTEN,fork SYSTEM, socat")
def socat(scene: Scene) -> None:
    command = ["socat", "TCP-LISTEN:7000,fork,reuseaddr", f"SYSTEM:cat {scene.work}/blob"]
    server = scene.server("pipe", command, 7000)
    scene.moves(["socat", "-u", "TCP:pipe:7000", "STDOUT"])
    scene.stop(server)


@SOCAT.case("echo both ways (TCP-LISTEN,fork EXEC), socat")
def echo(scene: Scene) -> None:
    server = scene.server("echo", ["socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat"], 7000)
    scene.moves(["sh", "-c", f"socat -t 30 - TCP:echo:7000 <{scene.client_work}/blob"])
    scene.stop(server)


@NETCAT.case("nc -lN in a loop, nc")
def netcat(scene: Scene) -> None:
    # nc -l serves one client; -k would keep its standard input's end. A loop serves one after the other.
    loop = f"while :; do nc -lN 7000 <{scene.work}/blob; done"
    server = scene.server("pipe", ["sh", "-c", loop], 7000)
    again = "[ $((n=n+1)) -lt 500 ] || exit 1; sleep 0.02"
    ask = f"until nc -d pipe 7000 >got$N && [ -s got$N ]; do {again}; done; cat got$N"
    scene.moves(["sh", "-c", ask])
    server.stop()
