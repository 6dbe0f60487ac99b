"""Requests per second of Redis and PostgreSQL under their own benchmarks: long connections, and new ones for each."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from .bridge import SERVER_ADDRESS, Bridge
from .lab import Lab, free_port, need, wait_listening
from .procs import Unavailable

CASE = "stores"
REDIS, PIPELINED, REDIS_NEW = "redis, GET", "redis, GET, 16 pipelined", "redis, GET, new connection for each"
PG, PG_NEW = "pgbench -S", "pgbench -S, new connection for each"
REDIS_CELLS, PG_CELLS = (REDIS, PIPELINED, REDIS_NEW), (PG, PG_NEW)
CELLS = REDIS_CELLS + PG_CELLS
NATIVE, BRIDGE, APPSWITCH = "native loopback", "veth + bridge", Lab.APPSWITCH
CLIENTS = 16
PG_CLIENTS = 4
REDIS_PORT, PG_PORT = 6379, 5432
PG_USER = "postgres"  # PostgreSQL refuses to be root

Measure = Callable[[str], float]
#: (lab, cell, host, port) → the client's command.
Ask = Callable[[Lab, str, str, int], list[str]]
#: (address, port) → the command of a server of its own.
Serve = Callable[[str, int], list[str]]


def parse_redis(text: str) -> float:
    """Requests per second from `redis-benchmark --csv`: a head, and a line that begins "GET","12345.67"."""
    found = re.search(r'^"GET[^"]*","([0-9.]+)"', text, re.MULTILINE)
    if not found:
        raise Unavailable("redis-benchmark reported something unexpected")
    return float(found[1])


def parse_pgbench(text: str) -> float:
    """Transactions per second from pgbench's report: "tps = 1234.5 (…)", connections' time included with -C."""
    found = re.findall(r"^tps = ([0-9.]+)", text, re.MULTILINE)
    if not found:
        raise Unavailable("pgbench reported something unexpected")
    return float(found[-1])


def run(lab: Lab) -> None:
    """Measure both stores, native, over a bridge and under AppSwitch."""
    _compare(lab, REDIS_CELLS, _redis(lab), REDIS_PORT, _ask_redis, parse_redis)
    try:
        database = _database(lab)
    except Unavailable as error:
        for name in (NATIVE, BRIDGE, APPSWITCH):
            lab.skip(CASE, PG_CELLS, name, str(error))
        return
    _compare(lab, PG_CELLS, database, PG_PORT, _ask_postgres, parse_pgbench)


def _compare(
    lab: Lab, cells: Sequence[str], server: Serve, port: int, ask: Ask, parse: Callable[[str], float]
) -> None:
    kind = cells[0].partition(",")[0].split()[0]

    def errors(name: str) -> Path:
        return lab.folder / f"{kind}-{name}.err"

    def native(own: ExitStack) -> Measure:
        there = free_port()
        process = lab.procs.spawn(server("127.0.0.1", there), err=errors("native"))
        own.callback(lab.procs.stop, process)
        wait_listening(process.pid, there)
        return lambda cell: parse(lab.procs.run(ask(lab, cell, "127.0.0.1", there)))

    def bridged(own: ExitStack) -> Measure:
        bridge = Bridge(lab.procs)
        process = lab.procs.spawn([*bridge.server, *server(SERVER_ADDRESS, port)], err=errors("bridge"))
        own.callback(lab.procs.stop, process)
        wait_listening(process.pid, port)
        return lambda cell: parse(lab.procs.run([*bridge.client, *ask(lab, cell, SERVER_ADDRESS, port)]))

    def appswitch(own: ExitStack) -> Measure:
        switch = own.enter_context(lab.switch())
        name = f"bench-{kind}"
        process = lab.procs.spawn(switch.run(*server("0.0.0.0", port), name=name), err=errors("own"), env=switch.env)
        own.callback(lab.procs.stop, process)
        switch.wait_service(name, process)
        return lambda cell: parse(lab.procs.run(switch.run(*ask(lab, cell, name, port)), env=switch.env))

    with ExitStack() as stack:
        variants: dict[str, Measure] = {}
        for name, make in ((NATIVE, native), (BRIDGE, bridged), (APPSWITCH, appswitch)):
            lab.offer(variants, CASE, cells, name, make, stack)
        lab.alternate(CASE, cells, variants, lambda cell, name, taken: lab.results.put(CASE, cell, name, taken))


def _redis(lab: Lab) -> Serve:
    need("redis-server", "redis-benchmark")
    quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", str(lab.folder)]
    return lambda address, port: ["redis-server", "--bind", address, "--port", str(port), *quiet]


def _ask_redis(lab: Lab, cell: str, host: str, port: int) -> list[str]:
    # So many that a run takes about as long as wrk's.
    count = round(lab.settings.requests_s * {REDIS: 20_000, PIPELINED: 200_000, REDIS_NEW: 1_000}[cell])
    more = {REDIS: [], PIPELINED: ["-P", "16"], REDIS_NEW: ["-k", "0"]}[cell]
    command = ["redis-benchmark", "-h", host, "-p", str(port), "-t", "get", "-c", str(CLIENTS), "-n", str(count)]
    return [*command, "--csv", *more]


def _database(lab: Lab) -> Serve:
    """Servers that begin with pgbench's tables, each with a copy of its own."""
    folder = lab.folder / "postgres"
    folder.mkdir()
    become: list[str] = []
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam(PG_USER)
        except KeyError:
            raise Unavailable("PostgreSQL is not installed") from None
        os.chown(folder, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={PG_USER}", f"--regid={user.pw_gid}", "--init-groups", "--"]
    template = str(folder / "template")
    initdb, postgres, pgbench = (_postgres_program(name) for name in ("initdb", "postgres", "pgbench"))
    trust = ["--auth=trust", "--no-sync", "--username=postgres"]
    lab.procs.run([*become, initdb, "-D", template, *trust], seconds=60)
    with open(Path(template, "pg_hba.conf"), "a") as rules:
        rules.write("host all all 0.0.0.0/0 trust\n")

    def command(data: str, address: str, port: int) -> list[str]:
        settings = {"listen_addresses": address, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*become, postgres, "-D", data, "-p", str(port), *words]

    port = free_port()
    process = lab.procs.spawn(command(template, "127.0.0.1", port), err=lab.folder / "postgres-first.err")
    try:
        wait_listening(process.pid, port)
        tables = [pgbench, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-i", "-q", "postgres"]
        lab.procs.run(tables, seconds=60)
    finally:
        lab.procs.stop(process, grace=10.0)

    def server(address: str, port: int) -> list[str]:
        data = f"{folder}/{address}-{port}"
        lab.procs.run(["cp", "-a", template, data])
        return command(data, address, port)

    return server


def _postgres_program(name: str) -> str:
    """Debian keeps most of PostgreSQL's programs off the path, by version."""
    found = shutil.which(name) or next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))), None)
    if found is None:
        raise Unavailable("PostgreSQL is not installed")
    return found


def _ask_postgres(lab: Lab, cell: str, host: str, port: int) -> list[str]:
    seconds = max(1, round(lab.settings.requests_s))
    command = [_postgres_program("pgbench"), "-h", host, "-p", str(port), "-U", "postgres", "-n", "-S"]
    new = ["-C"] if cell == PG_NEW else []
    return [*command, "-c", str(PG_CLIENTS), "-T", str(seconds), *new, "postgres"]
