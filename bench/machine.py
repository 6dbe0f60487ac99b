"""The description of the machine and of the tools, for the head of the report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from .switch import command


def describe() -> list[tuple[str, str]]:
    """(what, value) pairs; what cannot be told is left out or says `not installed`."""
    cpus = sorted(os.sched_getaffinity(0))
    rows = [
        ("Processor", f"{_cpu_model()}, {len(cpus)} cores usable"),
        ("Hypervisor", _hypervisor()),
        ("Memory", f"{_memory_gib():.1f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()} ({platform.machine()})"),
        ("Distribution", platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")),
        ("net.core.wmem_max", f"{_read('/proc/sys/net/core/wmem_max')} bytes"),
        ("User", "root" if os.geteuid() == 0 else "ordinary user"),
        ("Load average at the start", " ".join(f"{load:.2f}" for load in os.getloadavg())),
        ("Python", platform.python_version()),
        ("AppSwitch", _said([command(), "version"])),
        ("iperf", _said(["iperf", "-v"])),
        ("nginx", _said(["nginx", "-v"]).removeprefix("nginx version: ")),
        ("wrk", _said(["wrk", "-v"]).split(" Copyright")[0].removeprefix("wrk ")),
        ("C compiler", _said(["gcc", "--version"])),
    ]
    return [(name, value) for name, value in rows if value]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _hypervisor() -> str:
    try:
        done = subprocess.run(["lscpu"], capture_output=True, text=True, timeout=10, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for line in done.stdout.splitlines():
        if line.startswith("Hypervisor vendor:"):
            return line.partition(":")[2].strip()
    return "none seen"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _said(argv: list[str]) -> str:
    """The first line that a tool prints about its version, whatever its exit code."""
    if shutil.which(argv[0]) is None:
        return "not installed"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "no answer"
    lines = (done.stdout + done.stderr).strip().splitlines()
    # A traceback's first line says nothing.
    return "no answer" if not lines or lines[0].startswith("Traceback") else lines[0].strip()
