"""Packets as a program's namespace sends them, made by hand."""

import socket
import struct

CLIENT = {4: "100.64.1.2", 6: "fd00::2"}
SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}


def pack(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def ip(protocol: int, body: bytes, source: str, destination: str) -> bytes:
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return head + pack(source) + pack(destination) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, protocol, 0)
    return head + pack(source) + pack(destination) + body


def datagram(payload: bytes = b"hello", port: int = 123, source_port: int = 4000) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
