"""The trapped calls, one file a family. A handler gets the worker, the program and the call, and answers it."""

from __future__ import annotations

from ..worker import Handler
from . import accept, bind, connect, epoll, ioctl, listen, names, options

HANDLERS: dict[str, Handler] = {
    "connect": connect.connect,
    "accept": accept.accept,
    "accept4": accept.accept4,
    "getsockname": names.getsockname,
    "getpeername": names.getpeername,
    "bind": bind.bind,
    "listen": listen.listen,
    "setsockopt": options.setsockopt,
    "getsockopt": options.getsockopt,
    "epoll_create": epoll.create,
    "epoll_create1": epoll.create,
    "ioctl": ioctl.ioctl,
}
