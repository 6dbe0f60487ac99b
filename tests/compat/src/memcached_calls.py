"""HOST TIMES: says `ready` when connected, then makes so many requests for each line that it reads."""

import socket
import sys

host, times = sys.argv[1], int(sys.argv[2])
with socket.create_connection((host, 11211)) as sock, sock.makefile("rwb") as stream:
    print("ready", flush=True)
    for _ in sys.stdin:
        for number in range(times // 2):
            value = b"x" * number
            stream.write(b"set key 0 0 %d\r\n%s\r\n" % (number, value))
            stream.flush()
            assert stream.readline() == b"STORED\r\n"
            stream.write(b"get key\r\n")
            stream.flush()
            assert stream.readline() == b"VALUE key 0 %d\r\n" % number
            assert stream.read(number + 2) == value + b"\r\n"
            assert stream.readline() == b"END\r\n"
        print("done", flush=True)
