"""Transactions that write to the table, and large changes as many of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import lmdb

from .turns import Turns

T = TypeVar("T")


def no_room(error: lmdb.Error) -> Exception:
    """What LMDB's error comes to: OSError if it is for lack of room, else itself."""
    if isinstance(error, lmdb.DiskError | lmdb.MapFullError):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if str(error).endswith(os.strerror(errno.EIO)):  # what it makes of a write that stops halfway
        return OSError(errno.EIO, "it was written in part only: is the disk full?")
    return error


class Writer:
    """On the environment of a `Table` in the directory `path`."""

    def __init__(self, env: Any, path: str, *, readonly: bool) -> None:
        self._env, self._turns = env, Turns(None if readonly else path)

    def close(self) -> None:
        self._turns.close()

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """OSError when the disk has no room for it; nothing is changed then."""
        try:
            self._turns.announce()
            try:
                begun = self._env.begin(write=True)
            finally:
                self._turns.withdraw()
            with begun as txn:
                yield txn
        except lmdb.Error as error:
            raise no_room(error) from None

    def batches(self, items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
        """The items, `size` at a time, for a transaction each; others that wait to write have their turn before it."""
        for start in range(0, len(items), size):
            self._turns.give_way()
            yield items[start : start + size]
