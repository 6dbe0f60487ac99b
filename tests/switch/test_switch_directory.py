"""What DNS is told of the table."""

from dataclasses import replace
from pathlib import Path

import pytest

from appswitch.model.address import ANY, LOOPBACK4, pack
from appswitch.model.identity import Claim
from appswitch.model.service import TCP, Service
from appswitch.switch.directory import TableDirectory
from appswitch.table.store import Table

VIP = pack("100.64.3.3")


def row(port: int, **fields: object) -> Service:
    plain = Service(VIP, port, 1, 1, "web", (), ANY, True, "l", ("", 0), "random", "auto", 1.0, 1, 1)
    return replace(plain, **fields)  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = Table(str(tmp_path / "table"))
    made.set_claims(VIP, [Claim("web", VIP, 1), Claim("a.web", VIP, 1)])
    return made


def test_names_and_addresses(table: Table, tmp_path: Path) -> None:
    table.close()  # one handle a process
    directory = TableDirectory(Table(str(tmp_path / "table"), readonly=True))
    assert directory.addresses("web") == ["100.64.3.3"]
    assert directory.addresses("nobody") is None
    assert directory.names("100.64.3.3") == ["a.web", "web"]
    assert directory.names("100.64.3.4") == directory.names("nonsense") == []
    assert directory.below("web")
    assert not directory.below("a.web")


def test_services_that_all_may_find(table: Table, tmp_path: Path) -> None:
    table.apply_host_claims("b", {VIP: [Claim("web", VIP, 9, stamp=5, host="b")]})  # barred: it came later
    for one in (
        row(80),
        row(81, bound=LOOPBACK4),
        row(82, alone=True),
        row(83, state="draining"),
    ):
        table.put_service(one)
    table.replace_host_rows("b", [row(84, uid=9, host="b")])
    table.close()
    directory = TableDirectory(Table(str(tmp_path / "table"), readonly=True))
    assert [port for port in range(78, 86) if directory.serves("web", TCP, port)] == [80]
    assert directory.serves("a.web", TCP, 80)  # one address, one port space
    assert not directory.serves("nobody", TCP, 80)
    assert not directory.serves("web", 17, 80)
