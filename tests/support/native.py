"""The same programs without AppSwitch, to show that a scenario is right: `pytest --native tests/programs`.

A network namespace with a loopback device and a hosts file stands in for the switch; needs root.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .modes import Mode, Person
from .program import Program
from .switch import Row, Switch

_HOLDER = """
set -e
ip link set lo up
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start
mount --bind "$1" /etc/hosts
echo ready
exec sleep infinity
"""


class Native(Switch):
    """Has the methods of Switch that scenarios use; names stand for addresses in 127.0.1.0/24."""

    virtual = False

    def __init__(self, mode: Mode, env: Mapping[str, str] | None = None) -> None:
        super().__init__(mode, lambda person: Path("/bin/false"), env)
        self._hosts = self.base / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        self._addresses: dict[str, str] = {}
        unshare = ["unshare", "--net", "--mount", "--propagation", "private"]
        self._holder = Program(
            [*unshare, "sh", "-c", _HOLDER, "sh", str(self._hosts)],
            directory=self._output,
            label="holder",
            person=Person(os.geteuid(), os.getegid()),
            env=self.environment(),
        )
        self.programs.append(self._holder)

    def up(self, *options: str) -> None:
        self._holder.wait_output("ready")

    def command_line(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        ip: str | None = None,
        tags: Sequence[str] = (),
        options: Sequence[str] = (),
        user: Person | None = None,
    ) -> list[str]:
        if name and name not in self._addresses:
            self._addresses[name] = f"127.0.1.{len(self._addresses) + 1}"
            with self._hosts.open("a") as hosts:
                hosts.write(f"{self._addresses[name]} {name}\n")
        person = user or self.mode.program_owner
        user_flags = [f"--setuid={person.uid}", f"--setgid={person.gid}"] if person.uid else []
        here = [f"--target={self._holder.pid}", "--net", "--mount", f"--wdns={self.work}"]
        return ["nsenter", *here, *user_flags, "--", *(os.fspath(word) for word in argv)]

    def start(
        self,
        argv: Sequence[str],
        label: str,
        person: Person,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Program:
        # nsenter needs root to enter; it changes the user itself.
        return super().start(argv, label, Person(os.geteuid(), os.getegid()), env, **popen)

    def _is_up(self) -> bool:
        return True

    def services(self, who: str | None = None, port: int | None = None) -> list[Row]:
        command = ["nsenter", f"--target={self._holder.pid}", "--net", "ss", "-Hltn", f"sport = :{port}"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return [{"name": who, "vip": self._addresses.get(who or ""), "port": port} for _ in lines]
