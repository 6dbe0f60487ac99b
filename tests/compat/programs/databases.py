"""MariaDB."""

from ..program import Program
from ..scene import Scene

MARIADB = Program("MariaDB", "deb:mariadb-server", "deb:mariadb-client")


@MARIADB.case("mariadb")
def mariadb(scene: Scene) -> None:
    data = scene.work / "data"
    make = ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--user=root"]
    scene.client([*make, f"--datadir={data}", f"--tmpdir={scene.work}"], at="servers", trace=False)
    place = [f"--datadir={data}", f"--tmpdir={scene.work}", f"--socket={scene.work}/sock"]
    settings = ["--no-defaults", "--user=root", *place, "--port=3306"]
    more = ["--max-allowed-packet=64M", f"--init-file={scene.write('init.sql', INIT)}"]
    server = scene.server("db", ["mariadbd", *settings, *more], 3306)
    way = ["mariadb", "--no-defaults", "-h", "db", "-u", "guest", "-NBr", "--max-allowed-packet=64M", "test"]
    load = f"(printf 'insert into texts values (\"'; cat {scene.client_work}/text; printf '\");') | {' '.join(way)}"
    scene.client(["sh", "-c", load])
    scene.moves([*way, "-e", "select t from texts"], text=True)
    scene.stop(server)


INIT = """
create database if not exists test;
create table test.texts (t longtext);
create user guest@'%';
grant all on *.* to guest@'%';
"""
