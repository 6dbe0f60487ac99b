"""The window that a listener with an SO_RCVBUF of its own offers over TCP: the native one, from the handshake on."""

import json
import subprocess

from support.switch import PATH, Switch

_SCRIPT = """
import json, socket
from socket import IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET, TCP_INFO

def connection(size, late):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    if size and not late:
        listener.setsockopt(SOL_SOCKET, SO_RCVBUF, size)
    listener.listen()
    if size and late:
        listener.setsockopt(SOL_SOCKET, SO_RCVBUF, size)
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    # tcp_info (linux/tcp.h): the scale of its own window is in the upper half of byte 6; SO_BUF_LOCK is 72
    scale = server.getsockopt(IPPROTO_TCP, TCP_INFO, 8)[6] >> 4
    return [scale, server.getsockopt(SOL_SOCKET, SO_RCVBUF), server.getsockopt(SOL_SOCKET, 72)]

print(json.dumps([connection(size, late) for size, late in ((0, 0), (4096, 0), (0, 0), (4096, 1), (16384, 1), (0, 0))]))
"""


def test_the_handshake_offers_the_window_of_the_listener(switch: Switch, python: str) -> None:
    command = [python, "-c", _SCRIPT]
    native = subprocess.run(command, env={"PATH": PATH}, check=True, capture_output=True, text=True).stdout
    here = switch.check(command, ip="100.64.77.7", options=("--transport", "tcp"), status=0).stdout
    assert json.loads(here) == json.loads(native)
    small, plain = json.loads(native)[1], json.loads(native)[2]
    assert small[0] < plain[0], "natively it makes no difference: nothing was shown"
