"""Tests that pass natively and cannot under AppSwitch, each with the reason, which docs/transparency.md has too."""

from __future__ import annotations

from dataclasses import dataclass

EPIPE = "When the peer has closed or has shut both directions, poll adds `POLLHUP`; the first send gives `EPIPE`"
LINGER = "Closing with `SO_LINGER {1, 0}` set after connect() is a clean end, not a reset."
ADDRESS = "`sendto()` with an address on a connected socket gives `EISCONN` (TCP ignores the address)."
ROOM = "`SO_SNDBUF` and `SO_RCVBUF` are told as they were set, and limit nothing"

UNIX, TCP = "unix", "tcp"
TRANSPORTS = (UNIX, TCP)


@dataclass(frozen=True)
class Listed:
    """`test`: an id without the leading `test.`; `reason`: as docs/transparency.md begins to say it."""

    test: str
    transport: str
    reason: str


EXCEPTIONS = (
    Listed("test_socket.BufferIOTest.testRecvFromIntoSmallBuffer", UNIX, EPIPE),
    Listed("test_socket.ContextManagersTest.testCreateConnectionClose", UNIX, EPIPE),
    Listed("test_socket.NetworkConnectionBehaviourTest.testOutsideTimeout", UNIX, EPIPE),
    Listed("test_socket.InterruptedSendTimeoutTest.testInterruptedSendtoTimeout", UNIX, ADDRESS),
    Listed("test_ssl.SimpleBackgroundTests.test_bio_handshake", UNIX, EPIPE),
    Listed("test_ssl.SimpleBackgroundTests.test_bio_read_write_data", UNIX, EPIPE),
    Listed("test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_client", UNIX, EPIPE),
    Listed("test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_server", UNIX, LINGER),
    *(
        Listed(f"test_asyncio.test_sendfile.{loop}.test_sendfile_close_peer_in_the_middle_of_receiving", UNIX, ROOM)
        for loop in ("EPollEventLoopTests", "PollEventLoopTests", "SelectEventLoopTests")
    ),
)


def reasons(transport: str) -> dict[str, str]:
    """The reasons of what is listed for a transport, by test."""
    return {listed.test: listed.reason for listed in EXCEPTIONS if listed.transport == transport}
