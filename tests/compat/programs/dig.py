"""dig and named: a zone of 1 MiB is transferred over TCP, or asked for record by record over UDP."""

from support.program import Program as Running

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


def _serve(scene: Scene) -> Running:
    text = (scene.work / "text").read_text()
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    scene.write("zone", ZONE + "".join(f'r{number:05} IN TXT "{piece}"\n' for number, piece in enumerate(pieces)))
    command = ["/usr/sbin/named", "-g", "-n", "2", "-c", str(scene.write("named.conf", CONF))]
    return scene.server("ns", command, 5353)


@DIG.case("AXFR from BIND over TCP", "deb:bind9")
def transfer(scene: Scene) -> None:
    server = _serve(scene)
    ask = "dig +tcp -p 5353 @ns big.example AXFR | awk '$4 == \"TXT\" { gsub(/\"/, \"\", $5); printf \"%s\", $5 }'"
    scene.moves(["sh", "-c", ask], text=True)
    scene.stop(server)


@DIG.case(
    "5243 queries over UDP to BIND, each sent once, two clients at once; port 53 is answered by the switch itself",
    "deb:bind9",
    udp=True,
)
def udp(scene: Scene) -> None:
    server = _serve(scene)
    names = "seq -f 'r%05g.big.example TXT' 0 5242"
    ask = f"{names} | dig -p 5353 +short +tries=1 @ns -f /dev/stdin | tr -d '\\n\"'"
    words = scene.repeated(["sh", "-c", ask], 2, 1, text=True, seconds=150)
    scene.client(words, trace=True, seconds=320)
    # In programs of their own: dig's sockets have SO_REUSEPORT, so the kernel gives two of one namespace the same port
    # now and then, natively too, and one of them hears the other's answer.
    clients = [scene.background(words, name=name) for name in ("one", "two")]
    for client in clients:
        assert client.wait(320) == 0, client.errors() or client.output()
    scene.stop(server)
