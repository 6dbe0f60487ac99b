"""Run directories: which one, whose, and what is removed of them."""

import os
import socket
from pathlib import Path

import pytest

from appswitch.switch import client, daemon, paths
from appswitch.switch.paths import RunDir, SwitchError

UID = os.geteuid()


def test_root_has_its_own() -> None:
    assert paths.own({"XDG_RUNTIME_DIR": "/run/user/0"}, 0).path == "/run/appswitch"


def test_a_session_directory_is_taken_if_it_is_ours(tmp_path: Path) -> None:
    user = UID or 64123
    os.chown(tmp_path, user, -1)
    assert paths.own({"XDG_RUNTIME_DIR": str(tmp_path)}, user).path == f"{tmp_path}/appswitch"


@pytest.mark.parametrize("session", ["", "relative", "/does/not/exist", "/usr"])
def test_else_a_private_one_below_tmp(session: str) -> None:
    assert paths.own({"XDG_RUNTIME_DIR": session}, 64123).path == "/tmp/appswitch-64123"


def test_the_option_goes_before_the_environment() -> None:
    environ = {"APPSWITCH_RUN_DIR": "/b"}
    assert paths.named("/a", environ) == RunDir("/a")
    assert paths.named(None, environ) == RunDir("/b")
    assert paths.named(None, {}) is None


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / ("x" * 120)))
    with pytest.raises(SwitchError, match="bytes too long"):
        paths.prepare(run_dir, UID)
    with pytest.raises(SwitchError, match="bytes too long"):
        client.connect(run_dir, uid=UID)


def test_the_longest_path_that_fits_works(tmp_path: Path) -> None:
    name = "x" * (107 - len(str(tmp_path)) - len("//control.sock"))
    run_dir = RunDir(str(tmp_path / name))
    paths.prepare(run_dir, UID)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(run_dir.control)
    with pytest.raises(SwitchError, match="1 bytes too long"):
        paths.check_path(RunDir(str(tmp_path / (name + "x"))))


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    os.mkdir(run_dir.path)
    with pytest.raises(SwitchError, match=f"belongs to user {UID}, not to user 64999"):
        paths.check_owner(run_dir, 64999, shared=False)
    if UID == 0:  # root's may be used by others, but not as their own
        paths.check_owner(run_dir, 64999, shared=True)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(SwitchError, match="symbolic link"):
        paths.prepare(RunDir(str(tmp_path / "run")), UID)
    with pytest.raises(SwitchError, match="symbolic link"):
        client.connect(RunDir(str(tmp_path / "run")), uid=UID)


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "precious").touch()
    before = tmp_path.stat().st_mode
    with pytest.raises(SwitchError, match="holds other files"):
        daemon.occupy(RunDir(str(tmp_path)), UID)
    assert (tmp_path / "table" / "precious").exists()
    assert tmp_path.stat().st_mode == before


def test_one_only_holds_the_lock(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    lock = daemon.occupy(run_dir, UID)
    assert lock is not None
    assert daemon.occupy(run_dir, UID) is None
    os.close(lock)
    again = daemon.occupy(run_dir, UID)
    assert again is not None
    os.close(again)


def test_a_new_switch_clears_what_a_dead_one_left_and_keeps_its_log(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    lock = daemon.occupy(run_dir, UID)
    assert lock is not None
    paths.furnish(run_dir)
    Path(run_dir.log).write_text("last words")
    Path(run_dir.control).touch()
    Path(run_dir.path, "notes").touch()
    os.close(lock)
    lock = daemon.occupy(run_dir, UID)
    assert lock is not None
    assert sorted(os.listdir(run_dir.path)) == ["notes", "switch.lock", "switch.log.old"]
    assert Path(run_dir.log + ".old").read_text() == "last words"
    paths.remove(run_dir, lock)
    assert os.listdir(run_dir.path) == ["notes"]
    os.close(lock)


def test_a_directory_that_is_another_switchs_by_now_is_left_alone(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    old = daemon.occupy(run_dir, UID)
    assert old is not None
    paths.remove(run_dir, old)
    assert not os.path.exists(run_dir.path)
    new = daemon.occupy(run_dir, UID)
    assert new is not None
    paths.remove(run_dir, old)
    assert os.path.exists(run_dir.lock)
    os.close(old)
    os.close(new)


def test_a_control_socket_that_nobody_listens_on_is_no_switch(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    paths.prepare(run_dir, UID)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(run_dir.control)
    assert client.connect(run_dir, uid=UID) is None


def test_a_relative_path_in_a_directory_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SwitchError, match="give its whole path"):
        RunDir("relative")
    assert RunDir("/absolute").path == "/absolute"


def test_what_is_in_the_way_of_a_run_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "litter" / "control.sock" / "x").mkdir(parents=True)
    (tmp_path / "litter" / "switch.lock").touch()
    cases = {
        str(tmp_path / "file"): "is no directory: choose another",
        str(tmp_path / "file" / "run"): r"cannot make the run directory .* \(Not a directory\)",
        str(tmp_path / "none" / "run"): r"cannot make the run directory .* \(No such file or directory\)",
        str(tmp_path / "loop"): "is a symbolic link",
        str(tmp_path / "loop" / "run"): "cannot make the run directory",
        str(tmp_path / "litter"): "control.sock, which is in the way of a new switch, cannot be removed",
        "/proc/appswitch": "cannot make the run directory",
        os.fsdecode(bytes(tmp_path) + b"/\xff"): "is not UTF-8",
    }
    for path, words in cases.items():
        with pytest.raises(SwitchError, match=words):
            daemon.occupy(RunDir(path), UID)
    assert (tmp_path / "litter" / "control.sock" / "x").exists()


@pytest.mark.skipif(UID != 0, reason="needs files of another user")
def test_files_that_others_put_into_an_open_directory_are_not_trusted(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    os.mkdir(run_dir.path)
    os.chmod(run_dir.path, 0o777)
    Path(run_dir.lock).touch()
    os.chown(run_dir.lock, 64123, 64123)
    with pytest.raises(SwitchError, match=r"switch\.lock belongs to user 64123, not to user 0: remove it"):
        daemon.occupy(run_dir, UID)


def test_a_directory_that_others_can_write_to_is_closed_to_them(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    os.mkdir(run_dir.path)
    os.chmod(run_dir.path, 0o775)
    lock = daemon.occupy(run_dir, UID)
    assert lock is not None
    assert os.stat(run_dir.path).st_mode & 0o022 == 0
    os.close(lock)


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_a_switch_in_a_directory_that_others_can_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    """Anybody could have put it there."""
    run_dir = RunDir(str(tmp_path / "run"))
    paths.prepare(run_dir, UID)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(run_dir.control)
        sock.listen()
        os.chmod(run_dir.path, mode)
        with pytest.raises(SwitchError, match=rf"others can write to \S+ \(mode {mode:o}\).*chmod go-w"):
            client.connect(run_dir, uid=UID)
        os.chmod(run_dir.path, 0o755)
        connection = client.connect(run_dir, uid=UID)
        assert connection is not None
        with connection:
            pass
