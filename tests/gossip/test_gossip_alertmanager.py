"""Against memberlist in another program that is not Serf: Prometheus' Alertmanager, from Debian."""

import asyncio
import json
import urllib.request
from dataclasses import replace
from pathlib import Path

from appswitch.gossip.member import State
from support.modes import MYSELF
from support.needs import need
from support.program import Program

from .nodes import DEADLINE, Peer, alive, started, until
from .serf import free_port, ours

ADDRESS = "127.0.9.9"
VERSIONS = (0, 0, 0)  # it has none of its own


class Alertmanager:
    """A running one; `name` is what it calls itself in its cluster."""

    def __init__(self, directory: Path, label: str, *peers: tuple[str, int]) -> None:
        self.where, web = (ADDRESS, free_port(ADDRESS)), free_port(ADDRESS)
        (home := directory / label).mkdir()
        (home / "config.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
        argv = [
            need("prometheus-alertmanager"),
            f"--config.file={home}/config.yml",
            f"--storage.path={home}/data",
            f"--web.listen-address={ADDRESS}:{web}",
            f"--cluster.listen-address={self.where[0]}:{self.where[1]}",
            f"--cluster.advertise-address={self.where[0]}:{self.where[1]}",
            *(f"--cluster.peer={host}:{port}" for host, port in peers),
        ]
        self.program = Program(argv, directory=home, label=label, person=MYSELF, env={"HOME": str(home)})
        self.program.wait_output("Listening on")
        self._status = f"http://{ADDRESS}:{web}/api/v2/status"
        self.name = str(self.cluster()["name"])

    def cluster(self) -> dict[str, object]:
        with urllib.request.urlopen(self._status, timeout=DEADLINE) as answer:
            found: dict[str, object] = json.load(answer)["cluster"]
        return found

    def peers(self) -> set[str]:
        """The members that live, itself included."""
        return {peer["name"] for peer in self.cluster().get("peers", [])}  # type: ignore[attr-defined]

    async def until_peers(self, wanted: set[str]) -> None:
        async def look() -> None:
            while await asyncio.to_thread(self.peers) != wanted:
                await asyncio.sleep(0.1)

        try:
            await asyncio.wait_for(look(), DEADLINE)
        except TimeoutError:
            raise AssertionError(f"it sees {self.peers()}, not {wanted}: {self.program}") from None


def test_alertmanager_and_we_are_one_cluster(tmp_path: Path) -> None:
    async def scene(programs: list[Alertmanager]) -> None:
        wanted = [replace(ours(name, (), ADDRESS), versions=VERSIONS) for name in ("a", "b", "c")]
        async with started(*wanted) as [a, b, c]:
            # It joins us, and we join it.
            programs.append(await asyncio.to_thread(Alertmanager, tmp_path, "one", a.where))
            programs.append(await asyncio.to_thread(Alertmanager, tmp_path, "two"))
            one, two = programs
            assert await b.join([a.where, two.where]) == 2
            assert await c.join([one.where]) == 1
            everybody = {"a", "b", "c", one.name, two.name}
            for peer in (a, b, c):
                await until(lambda peer=peer: alive(peer) == everybody, "everybody", peer)
            for program in programs:
                await program.until_peers(everybody)
            assert any(state for state, _ in a.notes.merged), "its own state came with it"
            a.broadcast(b"what it does not know")
            a.notes.held = {"rows": b"1"}
            await until(lambda: {"rows": b"1"} in c.notes.heard, "a comparison", a, c)

            heard = c.notes.counts["gossip_received"]
            await until(lambda: c.notes.counts["gossip_received"] > heard + 30, "some rounds")
            assert alive(c) == everybody
            await b.leave()
            await one.until_peers(everybody - {"b"})
            await asyncio.to_thread(two.program.kill)
            await until(lambda: a.states()[two.name] == State.DEAD, "its death", a)
            await c.close()
            await one.until_peers({"a", one.name})
            await asyncio.to_thread(one.program.terminate)
            await until(lambda: a.states()[one.name] == State.LEFT, "its leaving", a)
            nothing_refused(a, b, c)

    def nothing_refused(*peers: Peer) -> None:
        for peer in peers:
            assert not {"gossip_malformed", "gossip_oversized", "gossip_incompatible"} & set(peer.notes.counts)

    programs: list[Alertmanager] = []
    try:
        asyncio.run(asyncio.wait_for(scene(programs), 300))
    finally:
        for program in programs:
            program.program.stop()
