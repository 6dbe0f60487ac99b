"""The section on nginx."""

from __future__ import annotations

from .. import web
from ..lab import Settings
from ..stats import Results, Target, ratio
from .tables import figure, table

NEW = Target(">=", 0.5)


def section(results: Results, settings: Settings) -> str:
    rows = []
    for cell in web.CELLS:
        native, bridge, own = (results.median(web.CASE, cell, v) for v in (web.NATIVE, web.BRIDGE, web.APPSWITCH))
        share = ratio(own, native)
        judged = [str(NEW), NEW.verdict(share)] if cell == web.NEW else ["none", ""]
        absolute = [figure(value, 0) for value in (native, bridge, own)]
        rows.append([cell, *absolute, figure(share), figure(ratio(own, bridge)), *judged])
    head = ["requests/s", web.NATIVE, web.BRIDGE, web.APPSWITCH, "÷ loopback", "÷ bridge", "target", ""]
    return f"""
## Requests per second: nginx and wrk

{table(head, rows)}

nginx with {web.WORKERS} workers serves a static file of {len(web.BODY)} bytes; as a reverse proxy another nginx
with {web.WORKERS} workers passes each request on to it by a new connection. wrk asks with {web.THREADS} threads
and {web.CONNECTIONS} connections for {max(1, round(settings.requests_s))} s a run, in the rows with a new
connection for each with `Connection: close`. *veth + bridge*: server, proxy and client each in a network
namespace of its own. All are placed by the scheduler. A run in which wrk saw an error does not count as
measured.
"""
