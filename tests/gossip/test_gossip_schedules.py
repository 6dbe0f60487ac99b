"""Whatever happens to a cluster: once it is left in peace, everybody knows exactly who is there."""

from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.gossip.settings import LAN

from .simulator import Host, World

SIZE = 6
numbers = st.integers(0, SIZE - 1)
steps = st.one_of(
    st.tuples(st.just("run"), st.floats(0.1, 60)),
    st.tuples(st.just("kill"), numbers),
    st.tuples(st.just("restart"), numbers),
    st.tuples(st.just("leave"), numbers),
    st.tuples(st.just("move"), st.just(0)),
    st.tuples(st.just("part"), st.sets(numbers, min_size=1, max_size=SIZE - 1)),
    st.tuples(st.just("heal"), st.none()),
    st.tuples(st.just("meta"), numbers),
)


class Story:
    def __init__(self, seed: int, loss: float) -> None:
        self.world = World(seed, loss=loss)
        self.world.cluster(SIZE)
        self.side: set[str] = set()
        self.moves = 0

    @property
    def up(self) -> list[Host]:
        return [host for host in self.world.hosts.values() if host.up]

    def cut(self) -> None:
        addresses = {self.world.hosts[name].address for name in self.side}
        self.world.network.cut = lambda source, to: (source in addresses) != (to in addresses)

    def do(self, step: tuple[str, object]) -> None:
        world = self.world
        match step:
            case ("run", float(seconds)):
                world.run(seconds)
            case ("kill", int(number)):
                world.stop(f"n{number}")
            case ("restart", int(number)):
                again = world.add(f"n{number}")
                for host in self.up:
                    if host is not again:
                        world.join(again, host)
            case ("leave", int(number)):
                host = world.hosts[f"n{number}"]
                if host.up:
                    world.do(host, host.core.leave(world.now))
                    world.run(1)
                    world.stop(f"n{number}")
            case ("move", int(number)):
                host = world.hosts[f"n{number}"]
                if host.up:
                    self.moves += 1
                    world.move(host, f"10.7.0.{self.moves}")
                    self.cut()
            case ("part", set(members)):
                self.side = {f"n{number}" for number in members}
                self.cut()
            case ("heal", _):
                self.side = set()
                self.cut()
            case ("meta", int(number)):
                host = world.hosts[f"n{number}"]
                if host.up:
                    world.do(host, host.core.set_meta(b"%f" % world.now, world.now))

    def settle(self) -> None:
        self.do(("heal", None))
        world = self.world
        alone = [host for host in self.up if len(host.core.members()) == 1]
        for host in alone:  # as a host does that was told whom to join
            for other in self.up:
                if other is not host:
                    world.join(host, other)
        world.until(lambda: all(self.equal(host) for host in self.up), "everybody to know the same", 600)

    def equal(self, host: Host) -> bool:
        """Whether it knows those who are up as they know themselves, and nobody else."""
        known = {member.name: member for member in host.core.members() if member.reachable}
        return known == {other.settings.name: other.core.local for other in self.up}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1]), st.lists(steps, max_size=12))
def test_in_the_end_all_know_the_same(seed: int, loss: float, happens: list[tuple[str, object]]) -> None:
    story = Story(seed, loss)
    for step in happens:
        story.do(step)
    story.settle()
    # It stays so.
    changes = [len(host.events) for host in story.up]
    story.world.network.loss = 0.0
    story.world.run(LAN.push_pull_interval * 2)
    assert [len(host.events) for host in story.up] == changes
