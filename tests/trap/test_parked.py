"""What outlives a worker of the calls that it has not answered."""

from pathlib import Path

from appswitch.trap.parked import Binding


def test_a_bind_is_known_to_the_worker_after_the_one_that_died(tmp_path: Path) -> None:
    path = str(tmp_path / "bind")
    first = Binding(path)
    first.begin(7)
    first.begin(8)
    first.end(8)
    second = Binding(path)
    assert (second.is_begun(7), second.is_begun(8)) == (True, False)
    second.begin(9)
    assert [Binding(path).is_begun(cookie) for cookie in (7, 9)] == [True, True], "nor does it forget at the next death"
    second.end(7)
    assert not Binding(path).is_begun(7)


def test_binds_that_never_came_again_make_room(tmp_path: Path) -> None:
    binding = Binding(str(tmp_path / "bind"))
    for cookie in range(1, 1001):
        binding.begin(cookie)
    assert binding.is_begun(1000)
    assert not binding.is_begun(1)
