"""Run as a process: makes a program's surroundings around itself, sends their descriptors, then does as told.

Arguments: the number of a Unix SOCK_SEQPACKET socket, and {"addresses", "resolv_conf", "kind"} in JSON. Commands:
{"run": argv} gives {"code", "out", "err"}; {"socket": [family, type, protocol]} sends a socket of the namespace;
{"remove": name} removes a network device.
"""

import json
import os
import socket
import struct
import subprocess
import sys

from appswitch.linux import device, features, netlink
from appswitch.trap.surroundings import Plan, build


def no_tun(name: str) -> tuple[str, int]:
    raise OSError(f"no TUN device for {name} in this test")


def remove(name: str) -> None:
    """Remove a network device: rtnetlink(7), RTM_DELLINK, with an acknowledgement."""
    with netlink.Route() as route:
        route.ask((17, 0x0001 | 0x0004, struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)))


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    wanted = json.loads(sys.argv[2])
    if wanted["kind"] in (device.PACKET, device.PACKET_VNET):
        device._open_tun = no_tun
    if not device.has_header(wanted["kind"]):
        features.leave_out(features.VNET)
    plan = Plan(
        user=os.geteuid() != 0,
        addresses=wanted["addresses"],
        nameserver="100.64.0.53",
        resolv_conf=wanted["resolv_conf"],
    )
    made = build(plan)
    fds = [made.device_fd, *made.dns]
    socket.send_fds(control, [json.dumps({"kind": made.device_kind}).encode()], fds)
    for fd in fds:
        os.close(fd)
    while data := control.recv(65536):
        command = json.loads(data)
        if "socket" in command:
            with socket.socket(*command["socket"]) as sock:
                socket.send_fds(control, [b"{}"], [sock.fileno()])
        elif "remove" in command:
            remove(command["remove"])
            control.send(b"{}")
        else:
            done = subprocess.run(command["run"], capture_output=True, text=True, check=False)
            answer = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
            control.send(json.dumps(answer).encode())


main()
