"""`appswitch up`: start the switch."""

from __future__ import annotations

import grp
import logging
import os
import re
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module

import appswitch

from .. import __version__
from ..cluster.serf import OFF
from ..linux import features, probe
from ..linux.features import FEATURES
from ..model.identity import DEFAULT_RANGE, Refusal, check_range
from ..model.number import whole
from ..switch import client, daemon, membership, paths
from ..switch.kept import FORMAT
from ..switch.membership import Wish
from ..switch.paths import RunDir, SwitchError
from ..switch.registry import PER_USER
from ..switch.settings import Settings
from ..trap import generator
from . import config
from .main import leave_out_features, tell
from .options import RUN_DIR, Command, Option, UsageError, Values

#: Seconds that another switch, on its way up or down, is waited for.
_PATIENCE = 15.0
_POLL = 0.02
_GROUP = "appswitch"
#: What a switch consists of: an upgrade must not find out too late that one of these cannot be imported.
_NEEDED = ("switch.daemon", "switch.router", "relay.relay", "trap.loop")
_GID_MOST = 2**32 - 2
_MODE = re.compile("0?[0-7]{1,3}")


def main(values: Values) -> int:
    uid = os.geteuid()
    leave_out_features()
    run_dir = client.home(values.one("--run-dir"), os.environ, uid)
    settings = config.collect(values, os.environ, uid)
    switch = _settings(settings, run_dir, uid)
    lock = _lock_or_none(run_dir, uid)
    if lock is None and values.flag("--upgrade"):
        return _upgrade(run_dir, uid)
    if lock is None:
        return _already_up(run_dir, settings, uid)
    line = f"The switch is up in {run_dir}."
    try:
        switch = replace(_member(switch, settings.wish()), missing=_missing(uid))
    except BaseException:
        paths.remove(run_dir, lock)
        raise
    if switch.cluster is not None:
        line += f" This host is {switch.cluster.name} in the cluster {switch.cluster.label}."
    if switch.cluster is not None and switch.cluster.serf is not None and not switch.cluster.serf.keys:
        line += f" Serf's members are listed unencrypted: whoever reaches port {switch.cluster.serf.port} gets in."
    if guards := [name for name, _ in switch.missing if FEATURES[name].guard]:
        line += f" This kernel lacks what holds hostile programs ({', '.join(guards)}): see `appswitch status`."
    level = getattr(logging, (settings.one("log-level") or "info").upper())
    if not values.flag("--foreground"):
        daemon.serve_in_background(switch, lock, level)
        return tell(line)

    def ready() -> None:
        tell(line)

    try:
        daemon.serve(switch, lock, level, ready)
    except SwitchError:
        paths.remove(run_dir, lock)
        raise
    return 0


def _missing(uid: int) -> tuple[tuple[str, str], ...]:
    """The features that this kernel lacks. SwitchError when there is no use in a switch without one of them."""
    if generator.is_nested():
        raise SwitchError("a switch cannot be of use inside a program that is under AppSwitch: start it outside")
    try:
        found = probe.missing()
    except OSError as error:
        raise SwitchError(f"cannot start a process ({error.strerror}): end some others, then try again") from None
    for name, without in found.items():
        if FEATURES[name].needed:
            raise SwitchError(f"this kernel has no {name} ({FEATURES[name].since}): {without}")
    if (refusal := found.get(features.USER_NAMESPACES)) is not None:
        if uid != 0:
            raise SwitchError(refusal)
        found[features.USER_NAMESPACES] = f"{FEATURES[features.USER_NAMESPACES].without}: {refusal}"
    return tuple(found.items())


def _member(switch: Settings, wish: Wish) -> Settings:
    """With the cluster that is wished for, or that the last switch here was in."""
    remembered = membership.recall(switch.memory)
    if remembered is None and not _is_for_a_cluster(wish):
        return switch
    found = membership.resolve(wish, remembered, lambda: membership.default_name(switch.run_dir))
    return replace(switch, cluster=found, must_join=wish.token is not None)


def _is_for_a_cluster(wish: Wish) -> bool:
    return any(value is not None for value in (wish.token, wish.interface, wish.advertise)) or (
        wish.serf is not None and wish.serf != OFF
    )


def _already_up(run_dir: RunDir, settings: config.Settings, uid: int) -> int:
    line, wish = f"The switch in {run_dir} is already up.", settings.wish()
    flags = [option.name for option in config.SWITCH_OPTIONS]
    if given := [flag for flag in flags if settings.found[flag.removeprefix("--")].source == f"flag {flag}"]:
        line += f" It keeps the settings that it was started with: {', '.join(given)} would be for a new one."
    if _is_for_a_cluster(wish):
        with _connect(run_dir, uid) as connection:
            found = connection.request({"op": "join", "cluster": asdict(wish)})["result"]
        line += f" This host is {found['name']} in the cluster {found['label']}."
    return tell(line)


def _upgrade(run_dir: RunDir, uid: int) -> int:
    """Have this version replace the one that is up."""
    try:
        for name in _NEEDED:
            import_module(f"..{name}", __package__)
    except Exception as error:
        raise SwitchError(
            f"version {__version__} does not work here ({error!r}): the switch in {run_dir} goes on as it is"
        ) from None
    request = {
        "op": "upgrade",
        "python": sys.executable,
        "path": os.path.dirname(os.path.dirname(os.path.abspath(appswitch.__file__))),
        "formats": [FORMAT],
        "version": __version__,
    }
    with _connect(run_dir, uid) as connection:
        connection.request(request)
        try:
            connection.wait_end()
        except TimeoutError:
            raise SwitchError(f"the switch does not end for the new version: see {run_dir.log}") from None
    with _connect(run_dir, uid) as connection:
        found = connection.request({"op": "status"})["result"]["version"]
    return tell(f"The switch in {run_dir} goes on with version {found}.")


def _connect(run_dir: RunDir, uid: int) -> client.Connection:
    connection = client.connect(run_dir, uid=uid)
    if connection is None:
        raise SwitchError(f"the switch in {run_dir} has just ended: try again")
    return connection


def _lock_or_none(run_dir: RunDir, uid: int) -> int | None:
    """The lock of the run directory; None when a switch is up there."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        connection = client.connect(run_dir, uid=uid)
        if connection is not None:
            with connection:
                return None
        lock = daemon.occupy(run_dir, uid)
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            raise SwitchError(
                f"a switch holds {run_dir.lock} but does not answer: end the process whose number is in that file"
            )
        time.sleep(_POLL)


def _settings(values: config.Settings, run_dir: RunDir, uid: int) -> Settings:
    try:
        network = check_range(values.one("range") or DEFAULT_RANGE)
    except Refusal as error:
        raise UsageError(f"--range: {error}") from None
    mode, gid = _socket(values, uid)
    resolvers = values.all("resolver")
    _check_resolvers(resolvers)
    return Settings(
        run_dir,
        network,
        _workers(values.one("workers")),
        mode,
        gid,
        tuple(values.all("share")),
        tuple(resolvers),
        memory=membership.memory_path(run_dir, os.environ, uid),
        per_user=_per_user(values.one("per-user")),
    )


def _per_user(text: str | None) -> int:
    if text is None:
        return PER_USER
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000_000):
        raise UsageError(f"--per-user takes a number from 1 to 1000000, not {text!r}")
    return int(text)


def _workers(text: str | None) -> int:
    if text is None:
        cpus = len(os.sched_getaffinity(0))
        return 1 if cpus <= 2 else min(4, cpus // 2)
    number = whole(text, 1, 64)
    if number is None:
        raise UsageError(f"--workers takes a number from 1 to 64, not {text!r}")
    return number


def _socket(values: config.Settings, uid: int) -> tuple[int, int | None]:
    """Mode and group of the control socket: who may start programs under this switch."""
    mode_text, group = values.one("socket-mode"), values.one("socket-group")
    mode, gid = 0o600, None
    if group is not None:
        mode, gid = 0o660, _group(group)
        if gid is None:
            raise UsageError(f"--socket-group: there is no group {group!r}: give one that `getent group` shows")
    elif uid == 0 and mode_text is None and (gid := _group(_GROUP)) is not None:
        mode = 0o660
    if mode_text is not None:
        mode = int(mode_text, 8) if _MODE.fullmatch(mode_text) else -1
        if mode < 0:
            raise UsageError(f"--socket-mode takes an octal mode such as 0660, not {mode_text!r}")
    return mode, gid


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # ValueError: no such text can be a name
        return whole(name, 0, _GID_MOST)


def _check_resolvers(texts: list[str]) -> None:
    from ..dns.resolv_conf import parse_server

    for text in texts:
        try:
            parse_server(text)
        except ValueError as error:
            raise UsageError(f"--resolver: {error}") from None


COMMAND = Command(
    "up",
    "[OPTIONS]",
    "Start the switch in the background; returns when it serves. Nothing happens when it is up already.",
    (
        Option("--foreground", "", "stay in the foreground and log to standard error"),
        Option("--upgrade", "", "have this version replace the one that is up; programs do not notice"),
        *config.NODE_OPTIONS,
        config.JOIN,
        *config.SWITCH_OPTIONS,
        config.CONFIG,
        RUN_DIR,
    ),
    main,
    """
With --node-interface, --advertise or --join the switch is a member of a cluster: its programs and those of the other
hosts find each other. The first host's `up` makes the cluster and its key, `appswitch token` prints what the others
need, and --join returns when this host is a member, or says why it is not (exit code 1; nothing stays). The key and
the token are secrets; the switch keeps the key in a file of mode 0600, and the next `up` comes back to the cluster.
With --serf it is a member of a Serf cluster, too, whose agents see it live and die; `appswitch members` shows them.
They get to know nothing else of the cluster, and nothing that they say is believed in it.
--upgrade keeps the running switch's settings, its programs and their connections; when the new version cannot take
over, the switch goes on as before (exit code 1). With no switch up, one is started.
Settings may stand in the environment or a file: see `appswitch config --help`.""",
)
