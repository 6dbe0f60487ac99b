"""PostgreSQL with psql, pgbench and streaming replication."""

from pathlib import Path

from ..program import Program
from ..scene import Scene

POSTGRESQL = Program("PostgreSQL", "deb:postgresql-15", "deb:postgresql-client-15")
BIN = Path("/usr/lib/postgresql/15/bin")
WAY = ["-h", "db", "-U", "postgres"]


def _initialize(scene: Scene) -> Path:
    data = scene.work / "data"
    make = [f"{BIN}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
    scene.client(make, user="postgres", at="servers")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all,replication all all trust\nhost replication all all trust\n")
    return data


def _command(data: Path, *more: str) -> list[str]:
    settings = {"listen_addresses": "*", "unix_socket_directories": "", "fsync": "off"}
    return [f"{BIN}/postgres", "-D", str(data), *(f"-c{key}={value}" for key, value in settings.items()), *more]


@POSTGRESQL.case("psql")
def psql(scene: Scene) -> None:
    server = scene.server("db", _command(_initialize(scene)), 5432, user="postgres")
    client = [f"{BIN}/psql", *WAY, "-X", "-v", "ON_ERROR_STOP=1"]
    scene.client([*client, "-c", "create table texts (t text)", "-c", f"\\copy texts from '{scene.client_work}/text'"])
    scene.moves([*client, "-Atc", "select t from texts"], text=True)
    scene.stop(server)


@POSTGRESQL.case("pgbench, 10 clients, with and without a connection for each transaction")
def pgbench(scene: Scene) -> None:
    server = scene.server("db", _command(_initialize(scene)), 5432, user="postgres")
    bench = [f"{BIN}/pgbench", *WAY]
    scene.client([*bench, "-i", "-q", "postgres"])
    for words, done in (
        ("-C -c1 -t100", "100/100"),
        ("-C -c10 -j2 -t10", "100/100"),
        ("-c10 -t100", "1000/1000"),
    ):
        told = scene.client([*bench, *words.split(), "postgres"])
        assert f"processed: {done}" in told, told
    scene.stop(server)


@POSTGRESQL.case("streaming replication: primary and standby")
def replication(scene: Scene) -> None:
    primary = scene.server("db", _command(_initialize(scene)), 5432, user="postgres")
    standby_data = scene.client_work / "standby"
    scene.client([f"{BIN}/pg_basebackup", *WAY, "-D", standby_data, "-R"], user="postgres")
    standby = scene.server("standby", _command(standby_data), 5432, user="postgres", trace=True, at="clients")
    sql = "create table texts as select string_agg(md5(n::text), '') as t from generate_series(1, 40000) n"
    scene.client([f"{BIN}/psql", *WAY, "-c", sql])
    ask = [f"{BIN}/psql", "-h", "standby", "-U", "postgres", "-XAtc", "select md5(t), length(t) from texts"]
    told = scene.client([f"{BIN}/psql", *WAY, *ask[-2:]])
    scene.until(lambda: scene.client(ask, status=None, trace=False) == told, "the rows on the standby")
    scene.stop(standby)
    scene.stop(primary)
