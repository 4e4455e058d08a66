"""Lists of ports: what a deployment lets URLs name.

Many services that are no HTTP servers act on lines within an HTTP request, so the ports below 1024
but those of HTTP, and the known ones of mail and databases, are not sent to by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hookline_service.domain.target import MAX_PORT

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class PortList:
    """Ports; `in` asks whether one is among them."""

    ranges: tuple[range, ...] = ()

    def __contains__(self, port: int) -> bool:
        return any(port in ports for ports in self.ranges)


def parse_ports(texts: Iterable[str]) -> PortList:
    """`443`, `1024-65535`; raises ValueError."""
    return PortList(tuple(map(_range_of, texts)))


def _range_of(text: str) -> range:
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no port and no range of ports")
    ports = range(int(found[1]), int(found[2] or found[1]) + 1)
    if not (ports and ports[0] > 0 and ports[-1] <= MAX_PORT):
        raise ValueError(f"{text!r} is no range of ports between 1 and {MAX_PORT}")
    return ports


NO_PORTS = PortList()
DEFAULT_PORTS = parse_ports(["80", "443", "1024-65535"])
DEFAULT_DENIED_PORTS = parse_ports(
    [
        "1433-1434",  # SQL Server
        "1521",  # Oracle
        "2379-2380",  # etcd
        "2525",  # mail submission
        "3050",  # Firebird
        "3306",  # MySQL
        "5432",  # PostgreSQL
        "5984",  # CouchDB
        "6379",  # Redis
        "6432",  # PgBouncer
        "7687",  # Neo4j
        "9042",  # Cassandra
        "9160",  # Cassandra, by Thrift
        "9200",  # Elasticsearch
        "9300",  # Elasticsearch, among its nodes
        "11211",  # memcached
        "26257",  # CockroachDB
        "27017-27019",  # MongoDB
        "28015",  # RethinkDB
    ]
)
"""None from 32768 on: the system gives those to whoever asks for any port."""
