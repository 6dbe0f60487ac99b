"""Names of services (RFC 6335) and their ports, as SRV queries give them.

A list of our own and not the host's /etc/services: the answer must be the same on all hosts, and some have no such
file. It holds what is asked for by SRV, and what is commonly served.
"""

from __future__ import annotations

import re

#: As registered with IANA, but for `matrix` and `minecraft`, which are asked for though they are not.
_KNOWN = {
    "afs3-vlserver": 7003,
    "amqp": 5672,
    "amqps": 5671,
    "couchdb": 5984,
    "domain": 53,
    "domain-s": 853,
    "epmd": 4369,
    "etcd-client": 2379,
    "etcd-client-ssl": 2379,
    "etcd-server": 2380,
    "etcd-server-ssl": 2380,
    "ftp": 21,
    "gc": 3268,
    "git": 9418,
    "http": 80,
    "http-alt": 8080,
    "https": 443,
    "imap": 143,
    "imaps": 993,
    "ipp": 631,
    "ipps": 631,
    "iscsi-target": 3260,
    "kerberos": 88,
    "kerberos-adm": 749,
    "kpasswd": 464,
    "ldap": 389,
    "ldaps": 636,
    "matrix": 8448,
    "matrix-fed": 8448,
    "memcache": 11211,
    "minecraft": 25565,
    "mongodb": 27017,
    "mqtt": 1883,
    "ms-wbt-server": 3389,
    "mysql": 3306,
    "nats": 4222,
    "nfs": 2049,
    "nntp": 119,
    "ntp": 123,
    "pgpkey-http": 11371,
    "pop3": 110,
    "pop3s": 995,
    "postgresql": 5432,
    "puppet": 8140,
    "radius": 1812,
    "radsec": 2083,
    "redis": 6379,
    "rfb": 5900,
    "rsync": 873,
    "rtsp": 554,
    "secure-mqtt": 8883,
    "sieve": 4190,
    "sip": 5060,
    "sips": 5061,
    "smtp": 25,
    "snmp": 161,
    "ssh": 22,
    "stun": 3478,
    "stuns": 5349,
    "submission": 587,
    "submissions": 465,
    "svn": 3690,
    "syslog": 514,
    "syslog-tls": 6514,
    "telnet": 23,
    "turn": 3478,
    "turns": 5349,
    "xmpp-client": 5222,
    "xmpp-server": 5269,
    "xmpps-client": 5223,
    "xmpps-server": 5270,
}


def port_of(label: str) -> int | None:
    """The port that an SRV name's first label (`_http`, `_8080`; lower case) means; None when it means none."""
    if re.fullmatch(r"_[1-9][0-9]{0,4}", label):
        port = int(label[1:])
        return port if port <= 65535 else None
    return _KNOWN.get(label[1:]) if label.startswith("_") else None
