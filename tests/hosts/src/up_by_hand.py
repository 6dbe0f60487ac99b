"""`appswitch up` whose workers are told of a cluster by a test: argv[1] is the node as JSON, argv[2]
the most senders that a listener remembers (0: as ever), the rest is the command.

Later nodes come as datagrams to `node.sock` beside the run directory.
"""

import json
import select
import socket
import sys

from appswitch.cli.main import main
from appswitch.header import window
from appswitch.switch.children import Child
from appswitch.switch.supervisor import Supervisor

node = json.loads(sys.argv.pop(1))
window.SENDERS = int(sys.argv.pop(1)) or window.SENDERS
_start, _open = Child.start, Supervisor.open


def start(self, *arguments):
    _start(self, *arguments)
    if self.role.startswith("worker"):
        self.tell(0, node)


def open_with_socket(self):
    _open(self)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.bind("../node.sock")

    def tell(_):
        global node
        node = json.loads(sock.recv(65536))
        for worker in self._workers:
            worker.tell(0, node)

    self._loop.watch(sock.fileno(), select.EPOLLIN, tell)


Child.start = start
Supervisor.open = open_with_socket
sys.exit(main())
