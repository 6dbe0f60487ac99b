"""What the supervisor's children become: workers, the relay and the router."""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from typing import NoReturn

from ..model.identity import DOMAIN
from ..relay import relay
from ..table.counters import Counters
from ..table.store import Table
from ..trap import loop as trap_loop
from ..trap.options import WorkerSettings
from .children import Child
from .directory import TableDirectory
from .registry import LISTENERS_EACH
from .settings import Settings


class Roles:
    """Their places; `add_worker` makes one more."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._run_dir = settings, settings.run_dir
        self.relay = Child("relay", "appswitch-relay", self._be_relay)
        # It says farewell to the cluster at a SIGTERM, but it is to stay a member.
        self.router = Child("router", "appswitch-rtr", self._be_router, orphaned=signal.SIGKILL)
        self.workers: list[Child] = []
        for _ in range(settings.workers):
            self.add_worker()

    def add_worker(self) -> None:
        index = len(self.workers)
        self.workers.append(Child(f"worker-{index}", f"appswitch-wrk{index}", partial(self._be_worker, index)))

    def worker_settings(self, index: int) -> WorkerSettings:
        return WorkerSettings(
            self._run_dir.path,
            index,
            len(self.workers),
            virtual_range=str(self._settings.network),
            listeners_per_user=LISTENERS_EACH * self._settings.per_user,
        )

    def _be_worker(self, index: int, ours: socket.socket) -> NoReturn:
        trap_loop.run(ours, self.worker_settings(index))

    def _be_relay(self, ours: socket.socket) -> NoReturn:
        relay.run(
            ours,
            self._open_table,
            domain=DOMAIN,
            virtual_range=str(self._settings.network),
            run_dir=self._run_dir.path,
            upstreams=list(self._settings.upstreams) or None,
            stats=Counters(f"{self._run_dir.stats}/relay"),
        )

    def _open_table(self) -> tuple[TableDirectory, Table]:
        table = Table(self._run_dir.table)  # one in a process
        return TableDirectory(table), table

    def _be_router(self, ours: socket.socket) -> NoReturn:
        os.umask(0o022)  # compiled modules that Python keeps beside the sources are for every user
        from . import router  # here, for asyncio and cryptography are nobody else's

        os.umask(0o077)
        router.run(ours, self._run_dir.path, Counters(f"{self._run_dir.stats}/router"))
