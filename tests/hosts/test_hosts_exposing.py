"""A service that one host publishes, and a client of another that has never heard of AppSwitch."""

import socket
from collections.abc import Callable

from service.acting import Actor
from support.hosts import Hosts
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]


def test_a_client_of_the_network_gets_to_what_was_published_and_to_nothing_else(
    hosts: Callable[..., Hosts], actor_on: Start
) -> None:
    lab = hosts(2)
    gateway, outside = lab
    gateway.up("--node-interface", "eth0")  # so that its real ports are on the network too
    server = actor_on(gateway, "shop", tags=["group=1"], options=["--expose", "8080:80"])
    server("l = listen(80); greet(listen(81), 'for tags alone')")

    def connect(port: int) -> socket.socket:
        there = gateway.address, port
        return outside.namespace.call(lambda: socket.create_connection(there, timeout=DEADLINE))

    with connect(8080) as client:
        assert server("(got := take(l))[1]") == list(client.getsockname())
        assert client.getsockname()[0] == outside.address
        [row] = gateway.services("shop", 80)
        assert server("story(got[0])") == [[row["vip"], 80], list(client.getsockname())]
        assert row["published"] == ["0.0.0.0:8080"]
        client.sendall(b"hello")
        assert server("got[0].recv(5).decode()") == "hello"
    # The firewall is as it was: the real ports are for those that say who they are.
    for row in gateway.services("shop"):
        with connect(int(row["address"].rsplit(":", 1)[1])) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
    wait_until(lambda: gateway.counters()["header_missing"] == 2, lambda: "two that were turned away")
    assert server("events(l, select.POLLIN, 0)") == 0
    assert gateway.counters()["exposed"] == 1
