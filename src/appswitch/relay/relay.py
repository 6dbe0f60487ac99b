"""The relay: one process and one thread (but for `hub`) that reads the programs' devices, carries UDP, answers DNS.

The supervisor tells it about programs over the control socket (SOCK_SEQPACKET), in JSON with descriptors:

    {"op": "attach", "id": ..., "kind": "tun" | "packet", "vips": [...]}    device, then UDP sockets on the
                                                                            program's loopback, port 53
    {"op": "detach", "id": ...}
    {"op": "node", ...}             this host as a member of a cluster (trap.options.Node); answered by {"op": "node"}

An attach may carry "name", what the log calls the program, and "expected", names with the addresses that they are
answered with to this program while nobody has them: those that it waits for. With "identity" ({"name", "vip" in hex,
"tags", "uid", "named"}), "egress", "balance" and "since" the program's datagrams are carried, without all but DNS is
refused; "diag": the last descriptor is a sock_diag socket of the program's namespace; "route": after it comes a
NETLINK_ROUTE socket of it; "answer": {"op": "attached", "number"} is to say that it is done. The end of the control
socket ends the relay. With nothing to do the process sleeps without a timer.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from appswitch.dns import message as dns
from appswitch.dns import resolv_conf
from appswitch.dns.answers import Directory, Drop, Expecting, Reply, decide
from appswitch.dns.forward import Forwarder, Stats
from appswitch.linux import device, vnet
from appswitch.linux.vnet import FINISHED, Unfinished
from appswitch.relay import batches, packets, streams
from appswitch.relay.datagrams import Datagrams
from appswitch.relay.hosts import Here
from appswitch.relay.loop import Loop
from appswitch.relay.program import Program
from appswitch.relay.refusals import Refusals
from appswitch.relay.resolver_file import ResolverFile
from appswitch.table.store import Table

DNS_PORT = 53
DRAIN = 64  # packets of one device in a turn of the loop: the others' turn comes whatever one program sends
FRESH = 8  # packets that one counts as which begins a conversation

log = logging.getLogger("appswitch.relay")

Deliver = Callable[[bytes | None], None]


def run(
    control: socket.socket,
    open_table: Callable[[], tuple[Directory, Table | None]],
    *,
    domain: str,
    virtual_range: str,
    run_dir: str,
    upstreams: list[str] | None,
    stats: Stats,
    host_file: str = resolv_conf.HOST,
) -> NoReturn:
    """Serve until the supervisor closes `control`, then exit with 0.

    `open_table` is called once, in this process; without a table only DNS is carried. `virtual_range`: CIDR notation.
    `run_dir`: where the socket for DNS over TCP goes, and the resolver file that programs see. `upstreams`: numeric
    addresses to ask instead of the host's resolvers. `host_file`: the host's resolv.conf, followed as it changes.
    Raises OSError when the socket cannot be made, ValueError when an upstream is no address.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    directory, table = open_table()
    relay = Relay(
        control,
        directory,
        domain=domain,
        virtual_range=virtual_range,
        run_dir=run_dir,
        upstreams=upstreams,
        stats=stats,
        host_file=host_file,
        table=table,
    )
    try:
        relay.serve()
    finally:
        relay.close()
    raise SystemExit(0)


class Relay:
    """The loop and what it serves."""

    def __init__(
        self,
        control: socket.socket,
        directory: Directory,
        *,
        domain: str,
        virtual_range: str,
        run_dir: str,
        upstreams: list[str] | None,
        stats: Stats,
        host_file: str = resolv_conf.HOST,
        table: Table | None = None,
    ) -> None:
        self._control, self._directory, self._stats = control, directory, stats
        self._domain, self._virtual_range = domain, virtual_range
        self._loop = Loop()
        self._resolver_file = ResolverFile(run_dir, domain, virtual_range, host_file)
        self._forwarder = Forwarder(self._loop, stats, upstreams, host=self._resolver_file.follow)
        path = os.path.join(run_dir, streams.NAME)
        self._streams = streams.Streams(self._loop, path, self._resolve_stream)
        self._programs: dict[str, Program] = {}
        self._refusals = Refusals()
        self._datagrams: Datagrams | None = None
        if table is not None:
            self._datagrams = Datagrams(self._loop, table, stats, virtual_range, run_dir, self._write)
        self._ended = False
        self._turns = 0
        #: Calls of the loop's in which datagrams of known conversations were carried, and nothing else happened.
        self._carried = 0
        control.setblocking(False)
        self._loop.watch(control.fileno(), select.EPOLLIN, self._on_control)

    def serve(self) -> None:
        """Work until the control socket ends."""
        due: float | None = None
        known = False  # nothing has happened since that could have changed `due`
        while not self._ended:
            if not known:
                due = self._due()
            carried = self._carried
            calls = self._loop.turn(None if due is None else max(0.0, due - time.monotonic()))
            self._turns += 1
            known = calls == self._carried - carried
            if due is not None and due <= time.monotonic():
                self._expire()
                known = False

    def _due(self) -> float | None:
        """When `_expire` must be called; None when nothing waits."""
        timers = [self._forwarder.timeout(), self._streams.timeout()]
        if self._datagrams is not None:
            timers.append(self._datagrams.timeout())
        timer = min((timer for timer in timers if timer is not None), default=None)
        return None if timer is None else time.monotonic() + timer

    def _expire(self) -> None:
        self._forwarder.expire()
        self._streams.expire()
        if self._datagrams is not None:
            self._datagrams.expire()

    def close(self) -> None:
        """Give everything back but the control socket."""
        for program in list(self._programs.values()):
            self._detach(program)
        if self._datagrams is not None:
            self._datagrams.close()
        self._forwarder.close()
        self._streams.close()
        self._loop.close()

    # ---- programs ----

    def _on_control(self, _events: int) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._control, 65536, 64, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._ended = True
            return
        if not data:
            self._ended = True
            return
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("cut off: too long, or no descriptors are left in this process")
            self._obey(json.loads(data), fds)
        except (ValueError, KeyError, TypeError, OSError) as problem:
            log.error("the supervisor's message %.200r is of no use: %s", data, problem)
        for fd in fds:
            os.close(fd)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> None:
        """Do what the message says; takes from `fds` the descriptors that it keeps."""
        if message["op"] == "node":
            if self._datagrams is not None:
                self._datagrams.join(Here.of(message))
            # All of this host is to go by a new key before the others are told of it.
            self._tell({"op": "node"})
            return
        old = self._programs.get(str(message["id"]))
        if message["op"] == "attach":
            program = Program(message, fds)
            fds.clear()
            if old is not None:
                self._detach(old)
            try:
                self._attach(program)
            except OSError:
                self._detach(program)
                raise
            finally:
                if message.get("answer"):
                    self._tell({"op": "attached", "number": int(program.id)})
        elif message["op"] != "detach":
            raise ValueError("unknown operation")
        elif old is not None:
            self._detach(old)
            self._forwarder.forget(old.id)

    def _tell(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _attach(self, program: Program) -> None:
        self._resolver_file.follow()
        self._programs[program.id] = program
        self._loop.watch(program.fd, select.EPOLLIN, partial(self._on_device, program))
        for sock in program.sockets:
            self._loop.watch(sock.fileno(), select.EPOLLIN, partial(self._on_socket, program, sock))
        if self._datagrams is not None:
            self._datagrams.attach(program)

    def _detach(self, program: Program) -> None:
        self._programs.pop(program.id, None)
        if self._datagrams is not None:
            self._datagrams.detach(program)
        self._refusals.forget(program.id)
        self._drop_device(program)
        for sock in program.sockets:
            self._loop.forget(sock.fileno())
            sock.close()
        program.close_netlink()

    def _drop_device(self, program: Program) -> None:
        if program.fd >= 0:
            self._loop.forget(program.fd)
            os.close(program.fd)
            program.fd = -1

    # ---- packets ----

    def _on_device(self, program: Program, _events: int) -> None:
        # Where one packet comes at a time, to look for a second costs more than another turn.
        left = DRAIN if program.turn == self._turns - 1 or program.settling else 1
        program.turn = self._turns
        burst = self._datagrams.burst(program) if self._datagrams is not None else None
        now, alone, drained = time.monotonic(), True, False
        while left > 0 and program.fd >= 0:
            try:
                frame = device.read_frame(program.fd)
            except (BlockingIOError, InterruptedError):
                drained = True
                break
            except OSError as problem:
                # A packet socket says once that its device went down. Anything else is the end of the device.
                if problem.errno != errno.ENETDOWN:
                    self._drop_device(program)
                break
            left -= 1
            if burst is not None:
                work = burst.carry(frame, now, left > 0)
                if work:
                    left -= work - 1
                    continue
                burst.flush()
            alone = False
            packet = _packet(program.kind, frame)
            if packet is not None and not packets.is_group(packet.destination):
                left -= FRESH * self._on_packet(program, packet) + max(0, len(packet.payloads) - 1)
        if burst is not None:
            burst.flush()
        self._carried += alone
        if program.settling and (drained or program.settling < now) and self._datagrams is not None:
            self._datagrams.settle(program)

    def _on_packet(self, program: Program, packet: packets.Packet) -> bool:
        """Whether a conversation began, which takes longer."""
        if not program.may_send_from(packet.source):
            self._stats.add("spoofed")
            return False
        if packet.port == DNS_PORT and packet.protocol == packets.UDP:
            for query in packet.payloads:
                self._resolve(query, program.id, False, partial(self._reply, program, packet))
            if packet.payloads:
                return False
        elif self._datagrams is not None and program.identity is not None:
            if packet.protocol == packets.UDP:
                return self._datagrams.carry(program, packet)
            if packet.protocol in (packets.ICMP, packets.ICMPV6):
                self._datagrams.complain(program, packet)
        self._refuse(program, packet)
        return False

    def _refuse(self, program: Program, packet: packets.Packet) -> None:
        refusal = packets.refusal(packet)
        if refusal is not None:
            self._stats.add("datagrams_refused")
            self._log_refusal(program, packet)
            self._write(program, refusal)

    def _log_refusal(self, program: Program, packet: packets.Packet) -> None:
        what = (packet.protocol, packet.destination, packet.port)
        if self._refusals.worth_a_line(program.id, what, time.monotonic()):
            destination = packets.text(packet.destination)
            if packet.port:
                destination = f"[{destination}]" if ":" in destination else destination
                destination += f":{packet.port}"
            log.info(
                "%s from %s (%s) to %s refused: such are not carried",
                {packets.UDP: "datagram", packets.TCP: "TCP segment"}.get(packet.protocol, "packet"),
                program.name,
                packets.text(packet.source),
                destination,
            )

    def _reply(self, program: Program, packet: packets.Packet, answer: bytes | None) -> None:
        if answer is None:
            return
        if not self._send(program, packet, answer):
            self._send(program, packet, dns.truncated(answer))

    def _send(self, program: Program, packet: packets.Packet, answer: bytes) -> bool:
        reply = packets.udp_reply(packet, answer)
        return reply is not None and self._write(program, reply)

    def _write(self, program: Program, packet: bytes, left: Unfinished = FINISHED, /) -> bool:
        """Deliver to the program's namespace; False when the packet is too long for its device."""
        if program.fd >= 0:
            try:
                if not left.start or device.has_header(program.kind):
                    device.write_packet(program.fd, program.kind, packet, left)
                else:
                    for each in batches.finished(packet, left):
                        device.write_packet(program.fd, program.kind, each)
            except OSError as problem:
                return problem.errno != errno.EMSGSIZE
        return True

    def _on_socket(self, program: Program, sock: socket.socket, _events: int) -> None:
        for _ in range(DRAIN):
            try:
                query, client = sock.recvfrom(dns.LIMIT, socket.MSG_DONTWAIT)
            except OSError:  # nothing more, or word that a client did not wait for its answer
                return

            def deliver(answer: bytes | None, client: Any = client) -> None:
                if answer is not None and sock.fileno() >= 0:
                    try:
                        sock.sendto(answer, socket.MSG_DONTWAIT, client)
                    except OSError:
                        pass

            self._resolve(query, program.id, False, deliver)

    # ---- DNS ----

    def _resolve_stream(self, query: bytes, program: str, deliver: Deliver) -> None:
        self._resolve(query, program, True, deliver)

    def _resolve(self, query: bytes, program: str, over_tcp: bool, deliver: Deliver) -> None:
        try:
            asker = self._programs.get(program)
            directory = Expecting(self._directory, asker.expected) if asker and asker.expected else self._directory
            decision = decide(
                query,
                directory,
                domain=self._domain,
                over_tcp=over_tcp,
                virtual_range=self._virtual_range,
            )
        except Exception as problem:  # whatever is wrong with the table, the others' DNS goes on
            self._stats.add("faults")
            if self._refusals.worth_a_line("", repr(problem), time.monotonic()):
                log.error("a DNS query could not be answered from the table: %r", problem)
            deliver(dns.error(query, dns.SERVFAIL))
            return
        if isinstance(decision, Reply):
            self._stats.add("dns_answered")
            deliver(decision.message)
        elif isinstance(decision, Drop):
            deliver(None)
        else:
            self._forwarder.submit(query, program, over_tcp, deliver)


def _packet(kind: str, frame: bytes) -> packets.Packet | None:
    """What a device of this kind was read of."""
    raw = frame[device.BEFORE[kind] :]
    if not device.has_header(kind):
        return packets.parse(raw)
    return packets.parse(raw, vnet.unpack(frame, device.LINK[kind]) if len(frame) > vnet.SIZE else FINISHED)
