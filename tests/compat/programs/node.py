"""Node.js: http, net, dgram and cluster."""

from ..program import Program
from ..scene import Scene

NODE = Program("Node.js", "deb:nodejs")
WS = Program("ws", "npm:ws")


@NODE.case("http, http")
def http(scene: Scene) -> None:
    source = scene.source("http_node.js")
    server = scene.server("web", ["node", source, "serve", f"{scene.work}/blob", "80"], 80)
    scene.loops(["node", source, "get", "http://web/blob"])
    scene.stop(server)


@NODE.case("net, net")
def net(scene: Scene) -> None:
    source = scene.source("http_node.js")
    server = scene.server("pipe", ["node", source, "serve-net", f"{scene.work}/blob", "7000"], 7000)
    scene.loops(["node", source, "net", "pipe:7000"])
    scene.stop(server)


@NODE.case("cluster of two, curl", "deb:curl")
def cluster(scene: Scene) -> None:
    source = scene.source("http_node.js")
    server = scene.server("web", ["node", source, "serve", f"{scene.work}/blob", "80", "2"], 80)
    scene.moves(["curl", "-sSf", "http://web/blob"])
    ask = "for i in $(seq 20); do curl -sSf http://web/who; echo; done | sort -u | wc -l"
    assert scene.client(["sh", "-c", ask]).strip() == "2"
    scene.stop(server)


@WS.case("WebSocket server and client", "deb:nodejs")
def websocket(scene: Scene) -> None:
    source, env = scene.source("ws_node.js"), {"NODE_PATH": f"{scene.tools}/node_modules"}
    server = scene.server("web", ["node", source, "serve", f"{scene.work}/blob", "80"], 80, env=env)
    scene.loops(["node", source, "get", "ws://web/"], env=env)
    scene.stop(server)


@NODE.case("dgram, dgram", udp=True)
def dgram(scene: Scene) -> None:
    source = scene.source("http_node.js")
    server = scene.server("pieces", ["node", source, "serve-dgram", f"{scene.work}/blob", "7000"], 7000)
    scene.loops(["node", source, "dgram", "pieces:7000"])
    scene.stop(server)
