"""dig and named over TCP: a zone of 1 MiB is transferred."""

from ..program import Program
from ..scene import Scene

DIG = Program("dig", "deb:bind9-dnsutils")

CONF = """
options { directory "$work"; listen-on port 5353 { any; }; listen-on-v6 { none; }; pid-file none; recursion no;
          allow-transfer { any; }; session-keyfile none; managed-keys-directory "$work"; };
controls { };
zone "big.example" { type primary; file "zone"; };
"""
ZONE = "$TTL 60\n@ IN SOA ns.big.example. me.big.example. 1 60 60 60 60\n@ IN NS ns.big.example.\nns IN A 192.0.2.1\n"
PIECE = 200
"""Bytes of the text in a record."""


@DIG.case("AXFR from BIND over TCP", "deb:bind9")
def transfer(scene: Scene) -> None:
    text = (scene.work / "text").read_text()
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    scene.write("zone", ZONE + "".join(f'r{number:05} IN TXT "{piece}"\n' for number, piece in enumerate(pieces)))
    server = scene.server("ns", ["/usr/sbin/named", "-g", "-n", "2", "-c", str(scene.write("named.conf", CONF))], 5353)
    ask = "dig +tcp -p 5353 @ns big.example AXFR | awk '$4 == \"TXT\" { gsub(/\"/, \"\", $5); printf \"%s\", $5 }'"
    scene.moves(["sh", "-c", ask], text=True)
    scene.stop(server)


@DIG.case("queries over UDP to BIND", waits_for="UDP is not carried yet")
def udp(scene: Scene) -> None:
    """To be written when it is."""
