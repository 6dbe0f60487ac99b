"""Which of CPython's test modules are run, and which of their tests are left out on every side."""

from __future__ import annotations

from dataclasses import dataclass

PYTHON = "/usr/bin/python3.11"
PACKAGE = "libpython3.11-testsuite"
"""Debian's package of the tests; they go with Debian's interpreter of the same version."""

#: Those that take longest first, so that the processors are busy to the end.
MODULES = (
    "test_asyncio",
    "test_multiprocessing_spawn",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_fork",
    "test_socket",
    "test_xmlrpc",
    "test_imaplib",
    "test_logging",
    "test_ssl",
    "test_selectors",
    "test_poll",
    "test_eintr",
    "test_multiprocessing_main_handling",
    "test_ftplib",
    "test_poplib",
    "test_smtplib",
    "test_nntplib",
    "test_telnetlib",
    "test_httplib",
    "test_httpservers",
    "test_urllib2_localnet",
    "test_socketserver",
    "test_docxmlrpc",
    "test_select",
    "test_epoll",
    "test_asyncore",
    "test_asynchat",
)

#: Resources that a module does not run without. No test needs the Internet: those of test_socketserver are on loopback.
_RESOURCES = {"test_socketserver": ("network",)}

#: vsock(7) is no network of programs' own, and its tests hang natively on some virtual machines.
_LEFT_OUT = ("VSOCK",)


@dataclass(frozen=True)
class Part:
    """A module, or a part of it: tests whose id begins as one of `only` says, without those that have one of `without`
    in their id; ids without the leading `test.`.
    """

    module: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """What tells it to runner.py."""
        return [
            *(f"resource={name}" for name in _RESOURCES.get(self.module, ())),
            *(f"only=test.{begin}" for begin in self.only),
            *(f"without={piece}" for piece in (*_LEFT_OUT, *self.without)),
        ]
