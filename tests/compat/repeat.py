"""Run a command many times and check what each prints: `repeat.py TIMES AT_ONCE SHA256 SECONDS -- CMD…`.

Started inside the scene, as the parent of the clients; standard library only. The command finds its number in $N.
One newline at the end of what is printed does not count.
"""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def run(number: int, argv: list[str], sha256: str, seconds: float) -> str:
    """What was wrong with one run; empty when nothing was."""
    try:
        environment = os.environ | {"N": str(number)}
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired as error:
        return f"it did not end within {seconds:g} s: {tail(error.stderr or b'')}"
    if done.returncode != 0:
        return f"exit code {done.returncode}: {tail(done.stderr or done.stdout)}"
    if hashlib.sha256(done.stdout.removesuffix(b"\n")).hexdigest() != sha256:
        return f"{len(done.stdout)} bytes came, with another digest: {tail(done.stderr)}"
    return ""


def tail(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-300:] or "it said nothing"


def main() -> None:
    times, at_once, sha256, seconds = sys.argv[1:5]
    argv = sys.argv[6:]
    with ThreadPoolExecutor(int(at_once)) as pool:
        results = pool.map(lambda number: run(number, argv, sha256, float(seconds)), range(int(times)))
        wrong = [(number, result) for number, result in enumerate(results) if result]
    if wrong:
        number, result = wrong[0]
        sys.exit(f"{len(wrong)} of {times} failed; run {number}: {result}")


main()
