"""Java: HttpServer with HttpClient, and channels with a selector, of datagrams, too."""

from ..program import Program
from ..scene import Scene

JAVA = Program("OpenJDK", "deb:openjdk-17-jdk-headless")


def _command(scene: Scene) -> list[str]:
    # A source file: the compiler runs first, in the same process.
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", str(scene.source("Web.java"))]


@JAVA.case("HttpServer, HttpClient")
def http(scene: Scene) -> None:
    server = scene.server("web", [*_command(scene), "serve", f"{scene.work}/blob", "80"], 80)
    scene.loops([*_command(scene), "get", "http://web/blob"])
    scene.stop(server)


@JAVA.case("ServerSocketChannel and SocketChannel with a selector")
def nio(scene: Scene) -> None:
    server = scene.server("pipe", [*_command(scene), "serve-nio", f"{scene.work}/blob", "7000"], 7000)
    scene.loops([*_command(scene), "nio", "pipe:7000"])
    scene.stop(server)


@JAVA.case("DatagramChannel, DatagramChannel with a selector", udp=True)
def datagrams(scene: Scene) -> None:
    server = scene.server("pieces", [*_command(scene), "serve-datagrams", f"{scene.work}/blob", "7000"], 7000)
    scene.loops([*_command(scene), "datagrams", "pieces:7000"])
    scene.stop(server)
