"""The kernel's features: what is found out by trying is what the kernel says, and each can be left out."""

import os
import signal
from collections.abc import Iterator

import pytest

from appswitch.linux import features, landlock, pidfd, probe, seccomp


@pytest.fixture(autouse=True)
def _afterwards_all_again() -> Iterator[None]:
    yield
    features.leave_out("")
    pidfd._by_thread = None


def test_names_that_are_no_feature_are_refused() -> None:
    features.leave_out(" tun,, landlock ")
    assert features.left_out(features.TUN)
    assert features.left_out(features.LANDLOCK)
    with pytest.raises(ValueError, match="APPSWITCH_WITHOUT names 'tunn', which is none of addfd-send, landlock"):
        features.leave_out("tun,tunn")
    assert features.left_out(features.LANDLOCK), "nothing has changed"


def test_what_this_kernel_has_is_not_missing() -> None:
    """The suite runs where the needed ones are there: Linux 5.14 at least."""
    found = probe.missing()
    assert not [name for name in found if features.FEATURES[name].needed]
    assert (features.LANDLOCK in found) == (landlock.abi() < 4)
    assert probe.missing() == found, "trying has left no trace"


@pytest.mark.parametrize("name", features.FEATURES)
def test_what_is_left_out_is_missing(name: str) -> None:
    there = set(probe.missing())
    features.leave_out(name)
    assert set(probe.missing()) == there | {name}


@pytest.mark.parametrize(
    ("where", "flag", "name"),
    [
        (seccomp, "_ADDFD_SEND", features.ADDFD_SEND),
        (seccomp, "_SYNC_WAKE_UP", features.SYNC_WAKE_UP),
        (pidfd, "_THREAD", features.PIDFD_THREAD),
        (landlock, "NETWORK", features.LANDLOCK),
    ],
)
def test_a_flag_that_the_kernel_does_not_know_is_noticed(
    where: object, flag: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, flag, 1 << 20)
    assert name in probe.missing()


def test_children_may_be_ignored() -> None:
    """As by a caller that lets the kernel reap them (SIG_IGN for SIGCHLD)."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert probe.missing() == probe.missing()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_pidfds_of_threads_the_process_is_named() -> None:
    features.leave_out(features.PIDFD_THREAD)
    handle = pidfd.open_thread(os.getpid())
    with open("/dev/null") as null:
        copy = pidfd.copy_descriptor(handle, null.fileno())
    assert os.path.samestat(os.fstat(copy), os.stat("/dev/null"))
    for fd in (handle, copy):
        os.close(fd)
