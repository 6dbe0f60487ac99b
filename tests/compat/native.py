"""Programs without AppSwitch: every name has a network namespace and an address on a bridge, as a container would."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from support.hosts import Namespace, bridge_of_ports
from support.modes import MODES, Person
from support.needs import need
from support.program import Program
from support.switch import Row, Switch

_HOLDER = """
mount --bind "$1" /etc/hosts
echo ready
exec sleep infinity
"""


class Bridged(Switch):
    """Has the methods of Switch that scenes use. Programs without a name share one namespace."""

    virtual = False

    def __init__(self) -> None:
        super().__init__(MODES[0], lambda person: Path("/bin/false"))
        self._hosts = self.base / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        self._namespaces: dict[str, Namespace] = {}
        self._bridge = bridge_of_ports()
        self._holder = Program(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLDER, "sh", str(self._hosts)],
            directory=self._output,
            label="holder",
            person=Person(os.geteuid(), os.getegid()),
            env=self.environment(),
        )
        self.programs.append(self._holder)
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
        namespace = self._namespace(name or "")
        mounts = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        here = [need("nsenter"), mounts, f"--net={namespace.path}", f"--wdns={self.work}", "--"]
        return [*here, *(os.fspath(word) for word in argv)]

    def services(self, who: str | None = None, port: int | None = None) -> list[Row]:
        words = [need("ss"), "-Hltun", f"sport = :{port}"]
        return [{"name": who, "port": port} for _ in self._namespace(who or "").do(*words).splitlines()]

    def close(self) -> None:
        try:
            super().close()
        finally:
            for namespace in (*self._namespaces.values(), self._bridge):
                namespace.close()

    def _is_up(self) -> bool:
        return True

    def _namespace(self, name: str) -> Namespace:
        """That of a name, made when it is asked for first."""
        if name not in self._namespaces:
            made = self._namespaces[name] = Namespace()
            number = len(self._namespaces)
            self._bridge.ip(f"link add port{number} type veth peer name eth0 netns {made.path}")
            self._bridge.ip(f"link set port{number} master lab0 up")
            made.ip("link set eth0 up")
            made.ip(f"addr add 10.77.1.{number}/24 dev eth0")
            made.sysctl("net/ipv4/ip_unprivileged_port_start", 0)
            if name:
                with self._hosts.open("a") as hosts:
                    hosts.write(f"10.77.1.{number} {name}\n")
        return self._namespaces[name]
