"""Room on disk that is ours before we need it."""

from __future__ import annotations

import os


def reserve(file: str | int, size: int) -> None:
    """Make a file, or that behind a descriptor, at least so long and without holes. OSError ENOSPC.

    What is written to it or to a mapping of it later cannot fail for lack of room; a mapping would raise SIGBUS.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if isinstance(file, str) else file
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        if isinstance(file, str):
            os.close(fd)
