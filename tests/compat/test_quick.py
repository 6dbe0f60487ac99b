"""Some of the cases of `make compat`, with less effort: a case a lane, so that each transport has several."""

from pathlib import Path

import pytest

from compat.play import play
from compat.program import Case, all_programs
from compat.scene import Effort
from support import modes
from support.needs import need

LESS = Effort(one_after_the_other=10, at_once=5)
CHOSEN = [
    ("nginx", "reload under load, curl", "one host", ["nginx", "curl"]),
    ("nginx", "binary upgrade under load (USR2, QUIT), curl", "two hosts", ["nginx", "curl"]),
    ("HAProxy", "HTTP mode with health checks, curl", "one host, tcp", ["haproxy", "nginx", "curl"]),
    ("Redis", "replication: primary and replica, redis-cli", "two hosts", ["redis-server", "redis-cli"]),
    ("OpenSSH", "tunnel (ssh -L) to nginx, curl", "two hosts", ["sshd", "ssh", "nginx", "curl"]),
    ("OpenSSH", "sshd, scp", "one host", ["sshd", "ssh"]),
    ("vsftpd", "active (EPRT and PORT), curl with a name", "one host", ["vsftpd", "curl"]),
    ("vsftpd", "passive (EPSV and PASV), curl", "two hosts", ["vsftpd", "curl"]),
    ("iperf 3", "TCP, parallel, reverse, both ways at once", "two hosts", ["iperf3"]),
    ("memcached", "no request is trapped", "one host", ["memcached"]),
    ("memcached", "no request is trapped", "one host, tcp", ["memcached"]),
    ("memcached", "no request is trapped", "two hosts", ["memcached"]),
]


@pytest.mark.parametrize(
    ("program", "case", "lane", "commands"), CHOSEN, ids=[" ".join((*words[:3],)) for words in CHOSEN]
)
def test_a_program_works_as_natively(
    program: str, case: str, lane: str, commands: list[str], tmp_path: Path
) -> None:
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    for command in commands:
        need(command)
    log = tmp_path / "log"
    result = play(_find(program, case), lane, tmp_path, LESS, log)
    assert not result.reason, f"{result.reason}\n{log.read_text()}"
    wanted = {"one host": "unix", "one host, tcp": "tcp", "two hosts": "remote"}[lane]
    assert wanted in result.transports or not result.transports


def _find(program: str, case: str) -> Case:
    [found] = [one for each in all_programs() for one in each.cases if (each.name, one.name) == (program, case)]
    return found
