"""The egress policy: which hosts, ports and addresses deliveries may reach.

This file holds the whole policy and performs no I/O. Hosts and ports are checked as the URL writes
them, when a subscription is written and again when a request is sent. Addresses are checked when
they are literals, and for each connection that is made (`dialer`). By default only public addresses
are allowed; a deployment's lists can allow and deny more.

Names. An `xn--` label that is no valid A-label (RFC 5890 section 2.3.2.1) cannot be registered, and
implementations disagree about it: some decode it, some refuse it. A URL with such a label is
refused when it is written, and does not resolve when it is sent to. A label with `-` in its third
and fourth place but without `xn` is allowed: such names exist. Source: IDNA 2008 (RFC 5891 section
5.4). UTS 46 and browsers allow more, such as emoji.

Hosts. `HostList` matches the host as it stands in the URL, in the spelling of `domain/target.py`:
lower case, no trailing dot, one spelling for each address. A list of names does not stop a tenant
that writes the address instead, so addresses are denied by network.

Ports. Many services that are not HTTP servers act on lines inside an HTTP request. So ports below
1024 except those of HTTP, and well-known ports of mail servers and databases, are denied unless a
deployment allows them.

Addresses. The lists are written out because `ipaddress.is_global` is no egress filter: it is true
for multicast, for the 6to4 relay anycast, for 168.63.129.16 (a cloud's metadata service) and for
NAT64 of private addresses, and it changes with the Python version.

IPv6 is allowed by exception: only global unicast (2000::/3) less the special-purpose blocks within
it. That excludes mapped, compatible, NAT64, unique-local, link-local, site-local and multicast
addresses. Of those within 2000::/3 that carry an IPv4 address, 6to4 and Teredo are among the
denied blocks, and ISATAP is recognised by its interface identifier; a network's own NAT64 prefix
cannot be recognised, so an operator configures it. Where an operator allows a network of such
addresses (NAT64, on a machine without IPv4), the embedded IPv4 address is checked as well. Not
recognised: 6rd, whose prefix belongs to a provider, and 6over4, whose identifiers look like any
other.

Source: the IANA special-purpose address registries (RFC 6890 and successors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import idna

from hookline_service.domain.target import MAX_PORT, parse_host

_A_LABEL_PREFIX = "xn--"


def check_international(host: str) -> str | None:
    """Return why a host (in lower case) has an invalid `xn--` label; None if it has none."""
    for label in host.split("."):
        if not label.startswith(_A_LABEL_PREFIX):
            continue
        try:
            idna.ulabel(label)
        except idna.IDNAError as error:
            return f"has a host whose label {label} is no valid name of IDNA 2008: {error}"
    return None


_BELOW = "*."


@dataclass(frozen=True, slots=True)
class HostList:
    """A list of hosts; `in` checks membership."""

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    """Names that match every name below them, at any depth, but not themselves."""

    def __bool__(self) -> bool:
        return bool(self.exact or self.suffixes)

    def __contains__(self, host: str) -> bool:
        if host in self.exact:
            return True
        if not self.suffixes:
            return False
        labels = host.split(".")
        return any(".".join(labels[start:]) in self.suffixes for start in range(1, len(labels)))


NO_HOSTS = HostList()


def parse_hosts(texts: Iterable[str]) -> HostList:
    """Parse `hooks.example`, `*.example`, `192.0.2.1`, `[2001:db8::1]`; raise ValueError."""
    exact, suffixes = set(), set()
    for text in texts:
        if text.startswith(_BELOW):
            suffix = text.removeprefix(_BELOW)
            # With a label in front, so that a part of an address is not accepted as a suffix.
            suffixes.add(_checked(parse_host(f"a.{suffix}").removeprefix("a.")))
        else:
            exact.add(_checked(parse_host(text)))
    return HostList(frozenset(exact), frozenset(suffixes))


def _checked(host: str) -> str:
    if problem := check_international(host):
        raise ValueError(problem)
    return host


_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class PortList:
    """A list of port ranges; `in` checks membership."""

    ranges: tuple[range, ...] = ()

    def __contains__(self, port: int) -> bool:
        return any(port in ports for ports in self.ranges)


def parse_ports(texts: Iterable[str]) -> PortList:
    """Parse `443`, `1024-65535`; raise ValueError."""
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
"""None above 32767: the operating system assigns those as ephemeral ports."""


Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

DENIED_IPV4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    )
)  # fmt: skip
GLOBAL_UNICAST_IPV6 = IPv6Network("2000::/3")
DENIED_IPV6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48",
    )
)  # fmt: skip


_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
NAT64_LENGTHS = frozenset({32, 40, 48, 56, 64, 96})
_UNUSED_OCTET = 8
"""Bits 64 to 71 of an address stay zero in every NAT64 format (RFC 6052 section 2.2)."""
_ISATAP = 0x00005EFE
_ISATAP_MASK = 0xFCFFFFFF
"""Without the bits for "universal" and "group" (RFC 5214 section 6.1)."""
_IPV4_MASK = 0xFFFFFFFF
_FIRST_COMPATIBLE = 2  # :: and ::1 are addresses of their own


def is_public(address: Address) -> bool:
    """Whether an address is public: globally reachable unicast."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in DENIED_IPV4)
    return (
        address in GLOBAL_UNICAST_IPV6
        and not any(address in block for block in DENIED_IPV6)
        and not _is_isatap(address)
    )


def _is_isatap(address: IPv6Address) -> bool:
    return (int(address) >> 32) & _ISATAP_MASK == _ISATAP


def is_address(host: str) -> bool:
    """Whether a host is an address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks in CIDR notation; raise ValueError that names the invalid text."""
    return tuple(ip_network(text) for text in texts)


def parse_nat64(texts: Iterable[str]) -> tuple[IPv6Network, ...]:
    """Parse NAT64 prefixes in CIDR notation, of the lengths of RFC 6052; raise ValueError."""
    prefixes = tuple(map(IPv6Network, texts))
    for prefix in prefixes:
        if prefix.prefixlen not in NAT64_LENGTHS:
            raise ValueError(f"{prefix} is of no length that NAT64 has")
    return prefixes


def embedded_ipv4(address: IPv6Address, nat64: Iterable[IPv6Network] = ()) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address embeds; None if there is none.

    Mapped and compatible ones (RFC 4291 section 2.5.5), translated ones (RFC 7915), NAT64's
    well-known prefix and those that are given (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214), and
    the client's of Teredo (RFC 4380).
    """
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    for prefix in (_NAT64, *nat64):
        if address in prefix:
            return _behind(address, prefix)
    number = int(address)
    is_compatible = address in _COMPATIBLE and number >= _FIRST_COMPATIBLE
    if is_compatible or address in _TRANSLATED or _is_isatap(address):
        return IPv4Address(number & _IPV4_MASK)
    return None


def _behind(address: IPv6Address, prefix: IPv6Network) -> IPv4Address:
    """Return the embedded IPv4 address: the octets after the prefix, less the unused one."""
    octets = enumerate(address.packed)
    start = prefix.prefixlen // 8
    return IPv4Address(
        bytes(octet for at, octet in octets if at >= start and at != _UNUSED_OCTET)[:4]
    )


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What the deliveries of a deployment may reach. A deny list overrides every allow list."""

    allow: tuple[Network, ...] = ()
    """Networks that are allowed although not public (`HOOKLINE_EGRESS_ALLOW`)."""
    deny: tuple[Network, ...] = ()
    """Networks that are never reached, public or not (`HOOKLINE_EGRESS_DENY`)."""
    is_public_allowed: bool = True
    """False: only `allow` may be reached (`HOOKLINE_EGRESS_PUBLIC`)."""
    allow_hosts: HostList = NO_HOSTS
    """The only hosts that URLs may name; empty: all (`HOOKLINE_EGRESS_ALLOW_HOSTS`)."""
    deny_hosts: HostList = NO_HOSTS
    """Hosts that no URL may name (`HOOKLINE_EGRESS_DENY_HOSTS`)."""
    ports: PortList = DEFAULT_PORTS
    """The only ports that are sent to (`HOOKLINE_EGRESS_PORTS`)."""
    deny_ports: PortList = DEFAULT_DENIED_PORTS
    """Exceptions from `ports` (`HOOKLINE_EGRESS_DENY_PORTS`)."""
    nat64: tuple[IPv6Network, ...] = ()
    """Prefixes of NAT64 that this network uses (`HOOKLINE_EGRESS_NAT64`)."""

    def allows(self, address: str) -> bool:
        """Whether an address may be connected to; False for anything but an address.

        A zone id is ignored: it selects an interface, not another address.
        """
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return self._allows(parsed)

    def _allows(self, address: Address) -> bool:
        if _is_in(address, self.deny):
            return False
        if not (_is_in(address, self.allow) or (self.is_public_allowed and is_public(address))):
            return False
        within = embedded_ipv4(address, self.nat64) if isinstance(address, IPv6Address) else None
        return within is None or self._allows(within)

    def allows_all(self, addresses: Iterable[str]) -> bool:
        """Whether every address of a name is allowed: one denied address blocks the name."""
        return all(self.allows(address) for address in addresses)

    def allows_host(self, host: str) -> bool:
        """Whether URLs may contain a host, in the spelling of `TargetUrl`."""
        if host in self.deny_hosts:
            return False
        return not self.allow_hosts or host in self.allow_hosts

    def allows_port(self, port: int) -> bool:
        """Whether a port may be connected to, at any address."""
        return port in self.ports and port not in self.deny_ports

    def check_port(self, port: int) -> str | None:
        """Return why a URL with this port must be rejected; None if it is allowed."""
        if self.allows_port(port):
            return None
        return (
            f"port {port} is not one that this service may send to: HOOKLINE_EGRESS_PORTS and"
            " HOOKLINE_EGRESS_DENY_PORTS say which it may"
        )

    def check_host(self, host: str) -> str | None:
        """Return why a URL with this host must be rejected; None if it is allowed.

        Only literal addresses are checked here. The addresses of a name are checked for every
        connection.
        """
        if not self.allows_host(host):
            return f"{host} is not a host that this service may send to"
        if not is_address(host) or self.allows(host):
            return None
        return f"{host} is neither a public address nor allowed by HOOKLINE_EGRESS_ALLOW"


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == block.version and address in block for block in networks)
