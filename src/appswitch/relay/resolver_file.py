"""The file that programs see as /etc/resolv.conf, kept in step with the host's."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket

from appswitch.dns import resolv_conf
from appswitch.model.identity import resolver_address

NAME = "resolv.conf"

log = logging.getLogger("appswitch.relay")


class ResolverFile:
    """In `run_dir`; names the resolver of `virtual_range` and `domain`, and what the `host`'s file says besides."""

    def __init__(self, run_dir: str, domain: str, virtual_range: str, host: str = resolv_conf.HOST) -> None:
        self._path, self._domain = os.path.join(run_dir, NAME), domain
        self._nameserver = resolver_address(ipaddress.IPv4Network(virtual_range))
        self._host = resolv_conf.Followed(host)
        self._written: resolv_conf.ResolvConf | None = None

    def follow(self) -> resolv_conf.ResolvConf:
        """What the host's file says now; the programs' file says it too afterwards."""
        now = self._host.now()
        if now is not self._written:
            self._written = now
            try:
                text = resolv_conf.compose(now, self._nameserver, self._domain, socket.gethostname())
                resolv_conf.write_over(self._path, text)
            except OSError as problem:
                log.error("programs do not see what the host's %s says now: %s", resolv_conf.HOST, problem)
        return now
