"""Settings of the switch, from flags, the environment, a file and defaults; `appswitch config show` tells which."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..cluster.serf import OFF, PLAIN
from ..cluster.serf import PORT as SERF_PORT
from ..model.identity import DEFAULT_RANGE
from ..switch import client
from ..switch.membership import GOSSIP_PORT, LAN, LOCAL, TIMINGS, WAN, Wish
from ..switch.paths import SwitchError
from .options import OUTPUT, RUN_DIR, Command, Option, UsageError, Values, suggestion
from .output import report

CONFIG = Option("--config", "FILE", "settings in TOML (default: see `appswitch config --help`)")
NODE_OPTIONS = (
    Option("--node-interface", "IF|ADDR", "be in a cluster; others reach this host at this interface or address"),
    Option("--advertise", "ADDR", "tell others this address instead (address translation)"),
    Option("--port-range", "LO-HI", "ports for connections from other hosts (default: any)"),
    Option("--node-name", "NAME", "this host's name in the cluster (default: the hostname and 4 digits)"),
    Option("--gossip-port", "N", f"UDP and TCP port of the cluster's gossip (default: {GOSSIP_PORT})"),
    Option("--timings", "KIND", f"of the gossip: {LAN}, {WAN} or {LOCAL}, one machine (default: {LAN})", TIMINGS),
    Option("--serf", f"KEY|{PLAIN}|{OFF}", f"be in a Serf cluster, too: KEY as of its -encrypt (default: {OFF})"),
    Option("--serf-port", "N", f"UDP and TCP port for Serf's members (default: {SERF_PORT})"),
    Option("--serf-join", "ADDR[:PORT]", "where one of them is", many=True),
)
JOIN = Option("--join", "TOKEN", "join the cluster of this token, a secret printed by `appswitch token`")
SWITCH_OPTIONS = (
    Option("--range", "CIDR", f"where derived virtual addresses come from (default: {DEFAULT_RANGE})"),
    Option("--per-user", "N", "programs that a user may run at a time, with 4 x N listeners in all (default: 1000)"),
    Option("--workers", "K", "trap workers (default: 1 on up to two CPUs, else half of them, at most 4)"),
    Option("--socket-mode", "MODE", "mode of the control socket: who may run programs (default: 0600)"),
    Option("--socket-group", "GROUP", "its group, with mode 0660 (root's default: appswitch, if there is one)"),
    Option("--share", "PATTERN", "names that programs of every user may join, such as 'db-*'", many=True),
    Option("--resolver", "IP[:PORT]", "ask this DNS server instead of the host's", many=True),
    Option(
        "--log-level", "LEVEL", "debug, info, warning or error (default: info)", ("debug", "info", "warning", "error")
    ),
)
#: All that may stand in a file.
SETTINGS = (*SWITCH_OPTIONS, *NODE_OPTIONS, JOIN)
_DEFAULTS = {"range": DEFAULT_RANGE, "gossip-port": str(GOSSIP_PORT), "timings": LAN}
_DEFAULTS |= {"serf": OFF, "serf-port": str(SERF_PORT), "log-level": "info"}
_DEFAULT = "default"
_SYSTEM = "/etc/appswitch/appswitch.toml"
_SIZE = 1 << 20
_SECRET = "(a secret)"


class Setting(NamedTuple):
    """Values, none when nothing is set, and where they come from."""

    values: tuple[str, ...]
    source: str


class Settings:
    """By their names, which are those of the flags."""

    def __init__(self, found: dict[str, Setting]) -> None:
        self.found = found

    def one(self, name: str) -> str | None:
        values = self.found[name].values
        return values[-1] if values else None

    def all(self, name: str) -> list[str]:
        return list(self.found[name].values)

    def _set(self, name: str) -> str | None:
        """As `one`, None for a default; several with commas."""
        found = self.found[name]
        return None if found.source == _DEFAULT or not found.values else ",".join(found.values)

    def wish(self) -> Wish:
        """What is asked for of a cluster."""
        return Wish(
            self.one("join"),
            self.one("node-interface"),
            self.one("advertise"),
            self.one("port-range"),
            self.one("node-name"),
            self._set("gossip-port"),
            self._set("timings"),
            self._set("serf"),
            self._set("serf-port"),
            self._set("serf-join"),
        )


def collect(values: Values, environ: Mapping[str, str], uid: int) -> Settings:
    """Flags before the environment, before the file. UsageError; SwitchError when the file is not right."""
    path, must = _path(values.one("--config"), environ, uid)
    in_file = _read(path, must)
    found = {}
    for option in SETTINGS:
        name = option.name.removeprefix("--")
        variable = "APPSWITCH_" + name.upper().replace("-", "_")
        if given := values.all(option.name):
            found[name] = Setting(tuple(given), f"flag {option.name}")
            continue
        if variable in environ:
            words = environ[variable].split(",") if option.many else [environ[variable]]
            setting = Setting(tuple(word.strip() for word in words if word.strip()), f"environment {variable}")
        elif name in in_file:
            setting = Setting(in_file[name], f"file {path}")
        else:
            continue
        for value in setting.values:
            if option.choices and value not in option.choices:
                raise SwitchError(f"{setting.source}: {name} takes one of {', '.join(option.choices)}, not {value!r}")
        found[name] = setting
    for option in SETTINGS:
        name = option.name.removeprefix("--")
        found.setdefault(name, Setting((_DEFAULTS[name],) if name in _DEFAULTS else (), _DEFAULT))
    return Settings({name: found[name] for name in sorted(found)})


def _path(option: str | None, environ: Mapping[str, str], uid: int) -> tuple[str, bool]:
    """The file, and whether it must be there."""
    if option == "":
        raise UsageError("--config needs the name of a file")
    chosen = option or environ.get("APPSWITCH_CONFIG")
    if chosen:
        return os.path.abspath(chosen), True
    if uid == 0:
        return _SYSTEM, False
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(environ.get("HOME", "/nonexistent"), ".config")
    return f"{base}/appswitch/appswitch.toml", False


def _read(path: str, must: bool) -> dict[str, tuple[str, ...]]:
    import tomllib

    try:
        with open(path, "rb") as file:
            text = file.read(_SIZE + 1)
        if len(text) > _SIZE:
            raise SwitchError(f"{path} is larger than {_SIZE >> 20} MiB: give --config a file of settings")
        document = tomllib.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError):
        if must:
            raise SwitchError(f"there is no file {path}: give --config one that is there") from None
        return {}
    except OSError as error:
        raise SwitchError(f"cannot read {path} ({error.strerror}): see to it, or give --config another file") from None
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise SwitchError(f"{path} is not TOML: {error}") from None
    known = {option.name.removeprefix("--"): option for option in SETTINGS}
    found = {}
    for name, value in document.items():
        if name not in known:
            hint = "give it as --run-dir or $APPSWITCH_RUN_DIR" if name == "run-dir" else "see `appswitch config show`"
            raise SwitchError(f"{path}: there is no setting {name!r} for a file{suggestion(name, known)}: {hint}")
        many = known[name].many
        words = value if many and isinstance(value, list) else [value]
        if not all(type(word) in (str, int) for word in words):
            what = "texts" if many else "a text or a number"
            raise SwitchError(f"{path}: {name} takes {what}, not {value!r}")
        found[name] = tuple(str(word) for word in words)
    return found


# the command -----------------------------------------------------------------------------------------------


def main(values: Values) -> int:
    if values.words != ["show"]:
        raise UsageError("say what to do: appswitch config show")
    settings = collect(values, os.environ, os.geteuid()).found
    run_dir = client.home(values.one("--run-dir"), os.environ, os.geteuid())
    source = "flag --run-dir" if values.one("--run-dir") else "environment APPSWITCH_RUN_DIR"
    if not values.one("--run-dir") and not os.environ.get("APPSWITCH_RUN_DIR"):
        source = _DEFAULT
    settings = dict(sorted({**settings, "run-dir": Setting((str(run_dir),), source)}.items()))
    for name, shown in (("join", ()), ("serf", ((PLAIN,), (OFF,)))):
        if settings[name].values and settings[name].values not in shown:
            settings[name] = Setting((_SECRET,), settings[name].source)
    many = {option.name.removeprefix("--") for option in SETTINGS if option.many}
    document = [
        {
            "name": name,
            "value": list(setting.values) if name in many else (setting.values[-1] if setting.values else None),
            "from": setting.source,
        }
        for name, setting in settings.items()
    ]
    rows = [(row["name"], row["value"], row["from"]) for row in document]
    return report(values, document, ("NAME", "VALUE", "FROM"), rows)


COMMAND = Command(
    "config",
    "show [OPTIONS]",
    "Each setting of `appswitch up`, its value, and where it comes from. Nothing is changed.",
    (CONFIG, *SETTINGS, OUTPUT, RUN_DIR),
    main,
    f"""
Flags come before the environment (APPSWITCH_NODE_INTERFACE and so on; lists with commas), that before the file,
that before the defaults. The file has the names of the flags, as in

    node-interface = "eth0"
    gossip-port = 7942
    share = ["db-*"]

and is the one named by --config or $APPSWITCH_CONFIG, else {_SYSTEM} for root and
$XDG_CONFIG_HOME/appswitch/appswitch.toml (~/.config/…) for others. A token or Serf's key in it is a secret: mode 0600.

JSON: [{{name, value (a text, a list for share, resolver and serf-join, or null), from}}].""",
    words=True,
    mixed=True,
)
