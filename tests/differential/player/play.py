"""Plays one program: its processes, its steps in order, each result settled before the next step."""

import json
import os
import select
import signal
import socket
from typing import Any

from acts import LIMIT, Acts
from files import File, is_v4

_NOBODY = 9
"""A port where nobody listens."""
_SO_LINGER, _IPV6_V6ONLY = (1, 13), (41, 26)
_RESET = "0100000000000000"
_INHERITED_EARLY = {9, 13, 20, 21}  # SO_KEEPALIVE, SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO
_WAITALL, _PEEK, _DONTWAIT = 0x100, 2, 0x40
_NONBLOCK = socket.SOCK_NONBLOCK
_EPOLL_CTL_DEL = 2

Step = list[Any]


class Skipped(Exception):
    """The step cannot be done here: why, which is the same everywhere."""


class _Process:
    """The other end of a process of the program: acts in, results out."""

    def __init__(self, link: socket.socket, pid: int) -> None:
        self.link = link
        self.pid = pid
        self.slots: dict[int, File] = {}

    def act(self, *words: Any) -> Any:
        self.link.send(json.dumps(words).encode())
        data = self.link.recv(1 << 16)
        if not data:
            raise Skipped("DIED")
        return json.loads(data)


def _serve(link: socket.socket, acts: Acts, spare: socket.socket | None) -> None:
    """Be a process of the program until told to end."""
    while data := link.recv(1 << 16):
        words = json.loads(data)
        if words[0] == "exit":
            os._exit(0)
        if words[0] == "fork":
            assert spare is not None
            pid = os.fork()
            if pid == 0:
                link, spare = spare, None
            else:
                spare.close()
                link.send(str(pid).encode())
            continue
        try:
            result = acts.act(words)
        except Exception as error:
            result = repr(error)
        link.send(json.dumps(result).encode())


class Play:
    """`leave_out`: names of known differences whose steps are left out. `met`: those that would have been."""

    def __init__(self, leave_out: list[str]) -> None:
        self.leave_out = set(leave_out)
        self.met: set[str] = set()
        self.processes: dict[int, _Process] = {}
        self.used_ports: set[int] = set()
        self.ports: dict[int, str] = {}
        self._begin()

    def _begin(self) -> None:
        between = socket.socketpair()
        links = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for number in (0, 1):
            pid = os.fork()
            if pid == 0:
                mine, spare = links[number][1], links[2][1] if number == 0 else None
                keep = {0, 1, 2, mine.fileno(), between[number].fileno(), spare.fileno() if spare else mine.fileno()}
                for fd in set(range(3, 64)) - keep:
                    try:
                        os.close(fd)
                    except OSError:
                        pass
                try:
                    _serve(mine, Acts(between[number]), spare)
                finally:
                    os._exit(0)
            self.processes[number] = _Process(links[number][0], pid)
        for end in (*between, *(link[1] for link in links)):
            end.close()
        self.spare = links[2][0]
        for process in self.processes.values():
            process.link.settimeout(LIMIT * 2)

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for process in self.processes.values():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.link.close()
        self.spare.close()
        for number in {0, 1}.intersection(self.processes):
            os.waitpid(self.processes[number].pid, 0)

    def run(self, steps: list[Step]) -> list[Any]:
        """The results, one a step; those of a step that hangs is the last."""
        found: list[Any] = []
        for step in steps:
            try:
                found.append(self.step(step))
            except Skipped as skipped:
                found.append(f"({skipped})")
            except TimeoutError:
                found.append("HANGS")
            if found[-1] == "HANGS" or "(DIED)" in found[-1:] or "NEVER" in str(found[-1]):
                break
        return found

    # what steps are made of ---------------------------------------------------------------------------

    def step(self, step: Step) -> Any:
        number, name, *args = step
        process = self.processes.get(number)
        if process is None:
            raise Skipped("no such process")
        return getattr(self, f"_{name}")(process, *args)

    def file(self, process: _Process, slot: int) -> File:
        found = process.slots.get(slot)
        if found is None:
            raise Skipped("no such descriptor")
        return found

    def differs(self, name: str, here: bool = True) -> bool:
        """Is this where a known difference shows?"""
        if not here:
            return False
        self.met.add(name)
        return name in self.leave_out

    def without(self, name: str, here: bool) -> None:
        if self.differs(name, here):
            raise Skipped(f"known difference {name}")

    def settle(self, process: _Process, slot: int, file: File) -> None:
        """Wait for what is on its way to a file."""
        if not file.news or file.kind != "socket":
            return
        file.news = False
        data, mask = 0, 0
        if file.state == "listening":
            mask = select.POLLIN if file.queue else 0
        elif file.state == "connecting":
            file.state, mask = "connected", select.POLLOUT
        elif file.state == "refused":
            mask = select.POLLHUP
        if file.state == "connected":
            data = file.unread
            if file.reset:
                mask, data = select.POLLHUP, 0
            elif file.ended:
                mask = select.POLLRDHUP
        if (mask or data) and process.act("settle", slot, data, mask) != "ok":
            raise Skipped("NEVER")

    def settle_all(self) -> None:
        for process in self.processes.values():
            for slot, file in process.slots.items():
                self.settle(process, slot, file)

    def address(self, result: Any) -> Any:
        """Addresses in results, with ports by the order in which they appear."""
        if isinstance(result, list):
            port = result[-1]
            return [*result[:-1], self.ports.setdefault(port, f"p{len(self.ports)}") if port else 0]
        return result

    def port_of(self, process: _Process, slot: int, file: File) -> int:
        if not file.port:
            name = process.act("getsockname", slot)
            file.port = name[1] if isinstance(name, list) else 0
        return file.port

    def any_port(self, slot: int) -> int:
        """The port of a slot of any process."""
        for process in self.processes.values():
            if slot in process.slots and process.slots[slot].kind == "socket":
                if process.slots[slot].state == "shut":
                    return 0
                return self.port_of(process, slot, process.slots[slot])
        return 0

    def all_files(self) -> set[File]:
        return {file for process in self.processes.values() for file in process.slots.values()}

    def _lose(self, process: _Process, slot: int) -> None:
        """A descriptor has gone."""
        file = process.slots.pop(slot)
        file.holders -= 1
        if file.holders == 0:
            file.closed()

    # sockets ------------------------------------------------------------------------------------------

    def _socket(self, process: _Process, slot: int, family: str, nonblock: bool) -> Any:
        result = process.act("socket", slot, family, nonblock)
        if result == "ok":
            process.slots[slot] = File(family=family, nonblock=nonblock)
        return result

    def _bind(self, process: _Process, slot: int, kind: str, of: int | None) -> Any:
        file = self.file(process, slot)
        port = self.any_port(of) if of is not None else 0
        if of is not None and not port:
            raise Skipped("no port")
        self.without("over", file.over)
        self.without("rebind", port in self.used_ports)
        result = process.act("bind", slot, file.family, kind, port)
        if result == 0:
            file.state, file.address = "bound", kind
            self.port_of(process, slot, file)
        return result

    def _listen(self, process: _Process, slot: int, backlog: int) -> Any:
        file = self.file(process, slot)
        others = [other for other in self.all_files() if other is not file and other.state == "listening"]
        if file.port and file.port in {other.port for other in others} and self._shares(file, others):
            raise Skipped("which of two would get a connection is by chance")
        self.without("over", file.over)
        result = process.act("listen", slot, backlog)
        if result == 0:
            file.state, file.backlog = "listening", backlog
            self.port_of(process, slot, file)
        return result

    @staticmethod
    def _shares(file: File, others: list[File]) -> bool:
        return any(other.port == file.port for other in others)

    def _connect(self, process: _Process, slot: int, kind: str, of: int) -> Any:
        file = self.file(process, slot)
        port = self.any_port(of) if of >= 0 else _NOBODY
        if not port:
            raise Skipped("no port")
        self.settle(process, slot, file)
        listener = self.listener_at(file, kind, port)
        if listener is None and port == self.port_of(process, slot, file):
            raise Skipped("to itself")
        self.without("shut_listener", file.state == "shut")
        self.without("shut_unasked", file.shut_early or (file.unasked and bool(file.shut)))
        if file.family == "v6":
            if file.mapped and not is_v4("v6", kind):
                raise Skipped("once IPv4, Linux does not connect it by IPv6")
            file.mapped = file.mapped or is_v4("v6", kind)
        fresh = file.state in ("new", "bound", "refused", "disconnected")
        if fresh and listener is not None and listener.full():
            raise Skipped("full")
        if fresh and file.port:
            self.used_ports.add(file.port)
        result = process.act("connect", slot, file.family, kind, port)
        self._connected(file, fresh, listener, result)
        return result

    def listener_at(self, file: File, kind: str, port: int) -> File | None:
        """Who would get the connection."""
        if file.v6only and kind in ("own", "mapped"):
            return None
        found = [
            other
            for other in self.all_files()
            if other.state == "listening" and other.port == port and other.matches(is_v4(file.family, kind), kind)
        ]
        return min(found, key=lambda other: other.address == "any", default=None)

    def _connected(self, file: File, fresh: bool, listener: File | None, result: Any) -> None:
        if not fresh and result in (0, "EISCONN"):
            file.unasked = False
        if not fresh and file.state == "connected" and result in ("ECONNRESET", "ECONNABORTED", "EPIPE"):
            file.state, file.peer = "disconnected", None
        if not fresh or result not in (0, "EINPROGRESS"):
            if fresh and result == "ECONNREFUSED":
                file.state = "refused"
            return
        file.news = True
        if listener is None:
            file.state = "refused"
            return
        file.state = "connected" if result == 0 else "connecting"
        file.unasked = result != 0
        file.unread, file.ended, file.gone, file.reset, file.shut = 0, False, False, False, set()
        other = File(family=listener.family, state="connected", holders=1, peer=file, port=listener.port)
        file.peer = other
        listener.queue.append(other)
        listener.news = True
        self.used_ports.add(listener.port)

    def _disconnect(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        if file.state == "listening":
            raise Skipped("a listener")
        self.settle(process, slot, file)
        self.without("disconnected", file.state == "connected")
        self.without("shut_listener", file.state == "shut")
        result = process.act("disconnect", slot)
        if result == 0 and file.state == "connected":
            if file.peer is not None and not file.over:
                file.peer.after_end, file.peer.reset = file.peer.ended, True
            file.closed()
            file.state, file.peer, file.port, file.unasked = "disconnected", None, 0, False
        return result

    def _accept(self, process: _Process, slot: int, new: int, flags: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        if file.state == "listening" and not file.queue and not file.nonblock:
            raise Skipped("would wait")
        return self._accepted(process, file, new, flags, process.act("accept", slot, new, flags))

    def _accepted(self, process: _Process, file: File, new: int, flags: int, result: Any) -> Any:
        if isinstance(result, list):
            if not file.queue:
                return "TOO MANY"
            other = process.slots[new] = file.queue.pop(0)
            other.nonblock = bool(flags & _NONBLOCK)
            other.linger = file.linger
            other.news = True
            if other.peer is not None:
                other.peer.stirred |= other.peer.edges
        return self.address(result)

    def _dup(self, process: _Process, slot: int, new: int) -> Any:
        file = self.file(process, slot)
        result = process.act("dup", slot, new)
        if result == "ok":
            process.slots[new] = file
            file.holders += 1
        return result

    def _close(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self._before_end(process, slot, file, file.holders == 1)
        result = process.act("close", slot)
        self._lose(process, slot)
        return result

    def _before_end(self, process: _Process, slot: int, file: File, last: bool) -> None:
        if last and file.kind == "socket":
            self.settle(process, slot, file)  # unread bytes decide between an end and a reset
            self.without("linger_late", file.linger == "after" and file.peer is not None)

    def _shutdown(self, process: _Process, slot: int, how: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("over", file.over)
        self.without("disconnected", file.state == "disconnected")
        self.without("shut_listener", file.state == "shut")
        if file.state == "listening" and file.queue:
            raise Skipped("somebody waits in its queue")
        result = process.act("shutdown", slot, how)
        if result == "ENOTCONN" and file.state != "connected":
            file.shut_early = True
        if result == 0:
            if file.state == "listening":
                file.state = "shut" if how != 1 else "listening"
                file.port = 0  # one that was never bound may get another when it listens again
            else:
                file.shut_down(("r", "w", "rw")[how])
        return result

    def _getsockname(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("shut_listener", file.state == "shut")
        self.without("refused_name", file.state == "refused")
        self.without("disconnected_name", file.state == "disconnected")
        return self.address(process.act("getsockname", slot))

    def _getpeername(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("over", file.over)
        return self.address(process.act("getpeername", slot))

    def _setsockopt(self, process: _Process, slot: int, level: int, name: int, value: str) -> Any:
        file = self.file(process, slot)
        late = file.state == "listening" and level == 1 and name in _INHERITED_EARLY
        self.without("listener_late", late)
        self.without("over", file.over and (level, name) == _IPV6_V6ONLY)
        result = process.act("setsockopt", slot, level, name, value)
        if result == 0 and (level, name) == _SO_LINGER and value == _RESET:
            file.linger = "before" if file.state in ("new", "bound", "refused") else "after"
        if result == 0 and (level, name) == _IPV6_V6ONLY:
            file.v6only = value != "00000000"
        return result

    def _getsockopt(self, process: _Process, slot: int, level: int, name: int, length: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        if (level, name) == (6, 11):
            self.without("state", bool(file.shut) or file.reset or bool(file.peer and file.peer.shut & {"r"}))
        if (level, name) == (1, 4):
            self.without("reset_after_end", file.after_end)
        return process.act("getsockopt", slot, level, name, length)

    # data ---------------------------------------------------------------------------------------------

    def _send(self, process: _Process, slot: int, count: int, flags: int) -> Any:
        return self._sending(process, slot, "send", count, flags)

    def _sendmsg(self, process: _Process, slot: int, count: int) -> Any:
        return self._sending(process, slot, "sendmsg", count)

    def _sending(self, process: _Process, slot: int, *act: Any) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        peer = file.peer
        self.without("listener_data", file.state in ("listening", "shut"))
        self.without("disconnected", file.state == "disconnected")
        self.without("send_to_gone", file.gone or file.reset or (peer is not None and "r" in peer.shut))
        result = process.act(act[0], slot, *act[1:])
        if isinstance(result, int) and result > 0 and peer is not None:
            if file.gone or peer.shut == {"r", "w"}:  # TCP: a reset comes back
                file.after_end, file.reset, file.news = file.ended, True, True
            else:
                peer.unread += result
                peer.news = True
        return result

    def _recv(self, process: _Process, slot: int, count: int, flags: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("listener_data", file.state in ("listening", "shut"))
        self.without("disconnected", file.state == "disconnected")
        self.without("reset_after_end", file.after_end)
        waits = not file.nonblock and not flags & _DONTWAIT
        if waits and not file.readable():
            raise Skipped("would wait")
        if waits and flags & _WAITALL and file.unread < count and not (file.ended or file.reset or "r" in file.shut):
            raise Skipped("would wait for more")
        return self._received(file, flags, process.act("recv", slot, count, flags))

    @staticmethod
    def _received(file: File, flags: int, result: Any) -> Any:
        if isinstance(result, int) and not flags & _PEEK:
            file.unread -= result
            if file.peer is not None:
                file.peer.stirred |= file.peer.edges
        return result

    def _queued(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("shut_listener", file.state == "shut")
        self.without("disconnected", file.state == "disconnected")
        return process.act("queued", slot)

    # state of descriptors -------------------------------------------------------------------------------

    def _nonblock(self, process: _Process, slot: int, on: bool, by_ioctl: bool) -> Any:
        file = self.file(process, slot)
        result = process.act("nonblock", slot, on, by_ioctl)
        if result == 0:
            file.nonblock = on
        return result

    def _flags(self, process: _Process, slot: int) -> Any:
        self.file(process, slot)
        return process.act("flags", slot)

    # events -------------------------------------------------------------------------------------------

    def _poll(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self.settle_all()
        self.without("shut_listener", file.state == "shut")
        self.without("disconnected", file.state == "disconnected")
        return self.events(file, process.act("poll", slot))

    def events(self, file: File | None, mask: Any) -> Any:
        """As poll gave them; without a hang-up that is a known difference."""
        if file is not None and self.differs("shut_listener", file.state == "shut"):
            return ""
        if file is not None and self.differs("hang_up", file.hangs_up()):
            return "|".join(name for name in mask.split("|") if name != "HUP")
        if file is not None and self.differs("reset_after_end", file.after_end):
            return "|".join(name for name in mask.split("|") if name not in ("HUP", "ERR"))
        return mask

    def _select(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        self.settle(process, slot, file)
        self.without("shut_listener", file.state == "shut")
        self.without("disconnected", file.state == "disconnected")
        return process.act("select", slot)

    def _epoll_create(self, process: _Process, slot: int) -> Any:
        result = process.act("epoll_create", slot)
        if result == "ok":
            process.slots[slot] = File(kind="epoll")
        return result

    def _epoll_ctl(self, process: _Process, slot: int, operation: int, of: int, events: str) -> Any:
        file, other = self.file(process, slot), self.file(process, of)
        if file.kind != "epoll":
            raise Skipped("no epoll")
        self.settle(process, of, other)
        if {"ET", "OUT"} <= set(events.split("|")):
            other.edges.add(file)
        return process.act("epoll_ctl", slot, operation, of, events)

    def _epoll_wait(self, process: _Process, slot: int) -> Any:
        file = self.file(process, slot)
        if file.kind != "epoll":
            raise Skipped("no epoll")
        self.settle_all()
        return self.reported(file, process.act("epoll_wait", slot))

    def reported(self, epoll: File, result: Any) -> Any:
        if not isinstance(result, list):
            return result
        slots = {slot: file for process in self.processes.values() for slot, file in process.slots.items()}
        found = [[slot, self.events(slots.get(slot), mask)] for slot, mask in result]
        stirred = {place for file in slots.values() for place in file.stirred}
        edges = {slot for slot, file in slots.items() if epoll in file.stirred or file in stirred}
        for file in slots.values():
            file.stirred.discard(epoll)
        if self.differs("edge", bool(edges)):
            found = [item for item in found if item[0] not in edges]
        return sorted(item for item in found if item[1])

    # several processes ----------------------------------------------------------------------------------

    def _fork(self, process: _Process) -> Any:
        if process is not self.processes[0] or 2 in self.processes:
            raise Skipped("once is enough")
        pid = process.act("fork")
        child = self.processes[2] = _Process(self.spare, pid)
        child.link.settimeout(LIMIT * 2)
        for slot, file in process.slots.items():
            child.slots[slot] = file
            file.holders += 1
        return "ok"

    def _pass(self, process: _Process, slot: int) -> Any:
        """By SCM_RIGHTS, from process 0 to 1 or back."""
        here = 0 if process is self.processes.get(0) else 1
        other = self.processes.get(1 - here)
        if process not in (self.processes.get(0), self.processes.get(1)) or other is None:
            raise Skipped("nobody to pass it to")
        file = self.file(process, slot)
        if slot in other.slots:
            raise Skipped("has it")
        if process.act("give", slot) != 1:
            return "NOT GIVEN"
        result = other.act("get", slot)
        if result == "ok":
            other.slots[slot] = file
            file.holders += 1
        return result

    def _exit(self, process: _Process) -> Any:
        number = next(number for number, other in self.processes.items() if other is process)
        if number == 0:
            raise Skipped("the first goes on")
        for slot, file in process.slots.items():
            mine = sum(1 for other in process.slots.values() if other is file)
            self._before_end(process, slot, file, file.holders == mine)
        handle = os.pidfd_open(process.pid)
        process.link.send(b'["exit"]')
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        ended = bool(poller.poll(LIMIT * 1000))
        os.close(handle)
        for slot in list(process.slots):
            self._lose(process, slot)
        del self.processes[number]
        process.link.close()
        if number == 1:
            os.waitpid(process.pid, 0)
        return "ok" if ended else "NEVER"

    # waiting in one call while another is made ------------------------------------------------------------

    def _meanwhile(self, process: _Process, waiting: Step, other: Step) -> Any:
        """A thread waits in an act; then comes a step that ends its waiting."""
        name, slot, *rest = waiting
        file = self.file(process, slot)
        self.settle_all()
        if not self._will_wait(file, name) or not self._will_wake(file, name, other):
            raise Skipped("nothing to wait for")
        process.act("begin", [name, slot, *rest, *((LIMIT,) if name in ("poll", "epoll_wait") else ())])
        try:
            result = self.step(other)
        except Skipped as skipped:
            raise Skipped("NEVER") from skipped
        answer = process.act("finish")
        if name == "accept":
            answer = self._accepted(process, file, rest[0], rest[1], answer)
        elif name == "recv":
            answer = self._received(file, rest[1], answer)
        elif name == "poll":
            answer = self.events(file, answer)
        return [answer, result]

    @staticmethod
    def _will_wait(file: File, name: str) -> bool:
        if file.kind != "socket":
            return False
        if name == "accept":
            return file.state == "listening" and not file.nonblock and not file.queue
        if name == "poll" and file.state == "listening":
            return not file.queue
        return file.state == "connected" and not file.readable() and (name == "poll" or not file.nonblock)

    def _will_wake(self, file: File, name: str, other: Step) -> bool:
        number, what, slot, *rest = other
        process = self.processes.get(number)
        actor = process.slots.get(slot) if process else None
        if actor is None:
            return False
        if file.state == "listening":
            if what != "connect" or actor.state not in ("new", "bound", "refused"):
                return False
            port = self.any_port(rest[1]) if rest[1] >= 0 else _NOBODY
            return self.listener_at(actor, rest[0], port) is file
        return bool(what == "send" and actor.peer is file and actor.state == "connected" and "w" not in actor.shut)
