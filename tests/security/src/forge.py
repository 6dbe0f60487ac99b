"""Passes itself off as the switch: brings a listener's Unix socket a connection of its own making.

    forge.py PATH NOTE [RING]

NOTE is the message in hexadecimal. RING is the file of the switch's process ids, to be entered in. Prints the name of
the error, or what became of the connection: "closed" by the switch, or "taken" by the program, which has answered.
"""

import os
import socket
import struct
import sys

path, note = sys.argv[1], bytes.fromhex(sys.argv[2])
if len(sys.argv) > 3:
    with open(sys.argv[3], "r+b") as ring:
        ring.seek(-8, os.SEEK_END)
        ring.write(struct.pack("=Q", os.getpid()))
ours, theirs = socket.socketpair()
ours.sendall(b"evil")
carrier = socket.socket(socket.AF_UNIX)
try:
    carrier.connect(path)
except OSError as error:
    sys.exit(type(error).__name__)
try:
    socket.send_fds(carrier, [note], [theirs.fileno()])
    theirs.close()
    ours.settimeout(60)
    sys.exit("taken" if ours.recv(10) else "closed")
except ConnectionError:
    sys.exit("closed")
