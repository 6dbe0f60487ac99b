"""The paper's Figure 1, on one host and on three, with the same command lines: what `make demo-cluster` shows."""

import shutil

import demo_cluster
import pytest

from support import modes
from support.needs import need


@pytest.mark.parametrize("figure", [demo_cluster.on_one_host, demo_cluster.on_three_hosts])
def test_figure_1(figure: object, capsys: pytest.CaptureFixture[str]) -> None:
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    for program in ("redis-server", "curl"):
        need(program)
    assert shutil.which("python3")
    figure()  # type: ignore[operator]
    assert capsys.readouterr().out.count("  ok: ") >= 6
