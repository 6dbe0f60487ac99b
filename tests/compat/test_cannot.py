"""What cannot work fails at once, with an error that programs know from hosts that lack it."""

import json
from pathlib import Path

from compat.cannot import IMPOSSIBLE, IN_KERNEL
from support.switch import Switch

SOURCE = Path(__file__).with_name("src") / "cannot.py"


def test_what_cannot_work_fails_as_it_is_written(switch: Switch, python: str, public: Path) -> None:
    script = public / "cannot.py"
    script.write_bytes(SOURCE.read_bytes())
    script.chmod(0o644)
    told = json.loads(switch.check([python, script], name="tries", status=0).stdout)
    wanted = {name: row.error for row in IMPOSSIBLE for name in row.tried}
    # Python's name for it; the number is the same (errno(3)).
    wanted |= {name: "ENOTSUP" for name, error in wanted.items() if error == "EOPNOTSUPP"}
    assert {name: told[name] for name in wanted} == wanted
    # Where the kernel has them (this one may not), root's mount meets nobody at 192.0.2.1.
    assert {told[name] for name in IN_KERNEL} <= {"EPERM", "ENODEV", "ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED"}
    assert set(told) == {*wanted, *IN_KERNEL}
