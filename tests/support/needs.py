"""Programs from Debian's packages that tests run: present, left out openly by `make test`, or an error."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGES = {
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "redis-benchmark": "redis-tools",
    "iperf": "iperf",
    "iperf3": "iperf3",
    "wrk": "wrk",
    "busybox": "busybox-static",
    "go": "golang-go",
    "dig": "bind9-dnsutils",
    "node": "nodejs",
    "curl": "curl",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "nft": "nftables",
    "iptables": "iptables",
    "ss": "iproute2",
    "gcc": "gcc",
    "strace": "strace",
    "haproxy": "haproxy",
    "memcached": "memcached",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "vsftpd": "vsftpd",
    "serf": "serf",
    "prometheus-alertmanager": "prometheus-alertmanager",
}


def left_out() -> set[str]:
    """Packages that `make test` could not install: tests that need one are left out."""
    return set(os.environ.get("APPSWITCH_LEFT_OUT", "").split())


def find(program: str) -> str | None:
    """The program's path; None when `make test` could not install its package and said so.

    Any other absence fails the test: a missing package must not look like a passed test.
    """
    path = shutil.which(program, path=_PATH)
    if path is not None:
        return path
    package = _PACKAGES[program]
    if package in left_out():
        return None
    pytest.fail(f"{program} is not installed: run `make test`, or apt-get install {package}", pytrace=False)


def need(program: str) -> str:
    """The program's path; skips the test when `make test` could not install its package and said so."""
    path = find(program)
    if path is None:
        pytest.skip(f"{_PACKAGES[program]} could not be installed")
    return path


def build_go(source: str, target: Path, cache: Path) -> None:
    """Build one Go file without cgo, so that it is static and has Go's own resolver; `cache` holds what is built."""
    environment = {
        "PATH": _PATH,
        "HOME": str(cache),
        "GOCACHE": str(cache),
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
    }
    command = [need("go"), "build", "-o", str(target), source]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    target.chmod(0o755)


def compile_c(source: str, target: str, *flags: str) -> None:
    """Compile one C file; a compiler error fails the test with the compiler's words."""
    command = [need("gcc"), "-O1", "-Wall", "-o", target, source, "-pthread", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
