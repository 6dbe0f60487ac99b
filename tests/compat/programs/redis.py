"""Redis alone, replicated and as a cluster."""

from ..program import Program
from ..scene import Argv, Scene

REDIS = Program("Redis", "deb:redis-server")
PLAIN = ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"]


def _set(scene: Scene, *cli: str) -> None:
    words: Argv = ["sh", "-c", f"{' '.join(cli)} -x SET text <{scene.client_work}/text"]
    told = scene.client(words).strip()
    assert told == "OK", told


@REDIS.case("SET and GET, redis-cli", "deb:redis-tools")
def alone(scene: Scene) -> None:
    server = scene.server("cache", PLAIN, 6379)
    _set(scene, "redis-cli", "-h", "cache")
    scene.moves(["redis-cli", "-h", "cache", "GET", "text"], text=True)
    scene.client(["redis-benchmark", "-h", "cache", "-n", "2000", "-c", "10", "-P", "16", "-t", "set,get,lpush", "-q"])
    scene.stop(server)


@REDIS.case("replication: primary and replica, redis-cli", "deb:redis-tools")
def replication(scene: Scene) -> None:
    primary = scene.server("primary", PLAIN, 6379)
    _set(scene, "redis-cli", "-h", "primary")
    replica = scene.server("replica", [*PLAIN, "--replicaof", "primary", "6379"], 6379, trace=True, at="clients")
    ask = ["redis-cli", "-h", "replica", "INFO", "replication"]
    scene.until(lambda: "master_link_status:up" in scene.client(ask, trace=False), "the link of the replica")
    _set(scene, "redis-cli", "-h", "primary")
    assert int(scene.client(["sh", "-c", "(echo SET n 1; echo WAIT 1 30000) | redis-cli -h primary"]).split()[-1]) == 1
    scene.moves(["redis-cli", "-h", "replica", "GET", "text"], text=True)
    scene.stop(primary)
    scene.stop(replica)


@REDIS.case("cluster of three, redis-cli -c", "deb:redis-tools")
def cluster(scene: Scene) -> None:
    names = ("one", "two", "three")
    options = ["--cluster-enabled", "yes", "--cluster-config-file"]
    servers = [
        scene.server(name, [*PLAIN, *options, f"{name}.conf"], 6379, 16379, trace=True, at=at)
        for name, at in zip(names, ("servers", "clients", "servers"), strict=True)
    ]
    addresses = [scene.client(["getent", "ahostsv4", name]).split()[0] + ":6379" for name in names]
    scene.client(["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"], seconds=60)
    for name in names:
        ask = ["redis-cli", "-h", name, "CLUSTER", "INFO"]
        scene.until(lambda ask=ask: "cluster_state:ok" in scene.client(ask, trace=False), f"{name} to be ready")  # type: ignore[misc]
    _set(scene, "redis-cli", "-c", "-h", "one")
    scene.moves(["redis-cli", "-c", "-h", "two", "GET", "text"], text=True)
    scene.moves(["redis-cli", "-c", "-h", "three", "GET", "text"], text=True)
    for server in servers:
        scene.stop(server)
