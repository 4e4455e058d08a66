"""What may be connected to: public addresses, unless a deployment's lists say otherwise.

Knows hosts, ports and addresses, no sockets and no resolver. Hosts and ports are judged as the URL
writes them, when it is created and again when it is sent to; addresses when they are literals, and
for each connection that is made. The lists are written out, because
`ipaddress.is_global` is no egress filter: it is true for multicast, for the 6to4 relay anycast, for
168.63.129.16 (a cloud's metadata), for NAT64 of private addresses, and it changes with the Python
version.

IPv6 is allowed by exception: only global unicast (2000::/3) less the special-purpose blocks within
it. That shuts out mapped, compatible, NAT64, unique-local, link-local, site-local and multicast
addresses. Of those within 2000::/3 that carry an IPv4 address, 6to4 and Teredo are among the
blocks; ISATAP is told by its interface identifier; a network's own NAT64 prefix cannot be told, so
an operator names it. Where an operator allows a network of such addresses (NAT64, on a machine
without IPv4), the IPv4 address within is judged, too. Not told: 6rd, whose prefix is a provider's,
and 6over4, whose identifiers look like anybody's.

Source: the IANA special-purpose address registries (RFC 6890 and successors).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hookline_service.targets.http.hosts import NO_HOSTS, HostList
from hookline_service.targets.http.ports import DEFAULT_DENIED_PORTS, DEFAULT_PORTS, PortList

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
    """Whether an address is one that anybody on the Internet may be reached at."""
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
    """Whether a host is an address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; raises ValueError, naming the text, where one is none."""
    return tuple(ip_network(text) for text in texts)


def parse_nat64(texts: Iterable[str]) -> tuple[IPv6Network, ...]:
    """NAT64 prefixes in CIDR notation, of the lengths of RFC 6052; raises ValueError."""
    prefixes = tuple(map(IPv6Network, texts))
    for prefix in prefixes:
        if prefix.prefixlen not in NAT64_LENGTHS:
            raise ValueError(f"{prefix} is of no length that NAT64 has")
    return prefixes


def embedded_ipv4(address: IPv6Address, nat64: Iterable[IPv6Network] = ()) -> IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address may end up at; None where there is none.

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
    """The IPv4 address in a NAT64 address: the four octets behind the prefix but the unused one."""
    octets = enumerate(address.packed)
    start = prefix.prefixlen // 8
    return IPv4Address(
        bytes(octet for at, octet in octets if at >= start and at != _UNUSED_OCTET)[:4]
    )


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What a deployment lets its deliveries reach. What is denied is denied, whatever allows it."""

    allow: tuple[Network, ...] = ()
    """Allowed although not public (`HOOKLINE_EGRESS_ALLOW`)."""
    deny: tuple[Network, ...] = ()
    """Never reached, public or not (`HOOKLINE_EGRESS_DENY`)."""
    is_public_allowed: bool = True
    """False: `allow` is all that may be reached (`HOOKLINE_EGRESS_PUBLIC`)."""
    allow_hosts: HostList = NO_HOSTS
    """The only hosts that URLs may name; empty: all (`HOOKLINE_EGRESS_ALLOW_HOSTS`)."""
    deny_hosts: HostList = NO_HOSTS
    """Hosts that no URL may name (`HOOKLINE_EGRESS_DENY_HOSTS`)."""
    ports: PortList = DEFAULT_PORTS
    """The only ports that are sent to (`HOOKLINE_EGRESS_PORTS`)."""
    deny_ports: PortList = DEFAULT_DENIED_PORTS
    """Those of them that are not (`HOOKLINE_EGRESS_DENY_PORTS`)."""
    nat64: tuple[IPv6Network, ...] = ()
    """Prefixes of NAT64 that this network uses (`HOOKLINE_EGRESS_NAT64`)."""

    def allows(self, address: str) -> bool:
        """Whether an address may be connected to; what is no address may not.

        A zone id is dropped: it picks an interface, not another address.
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
        """Whether every address of a name may be connected to: one that may not taints the name."""
        return all(self.allows(address) for address in addresses)

    def allows_host(self, host: str) -> bool:
        """Whether URLs may name a host, written as in `TargetUrl`, whatever it leads to."""
        if host in self.deny_hosts:
            return False
        return not self.allow_hosts or host in self.allow_hosts

    def allows_port(self, port: int) -> bool:
        """Whether a port may be sent to, whatever the address."""
        return port in self.ports and port not in self.deny_ports

    def check_port(self, port: int) -> str | None:
        """Why a URL with this port is refused when it is created; None where it is not."""
        if self.allows_port(port):
            return None
        return (
            f"port {port} is not one that this service may send to: HOOKLINE_EGRESS_PORTS and"
            " HOOKLINE_EGRESS_DENY_PORTS say which it may"
        )

    def check_host(self, host: str) -> str | None:
        """Why a URL with this host is refused when it is created; None where it is not.

        Of addresses only literals are judged here. A name is judged at every connection, by what it
        leads to then.
        """
        if not self.allows_host(host):
            return f"{host} is not a host that this service may send to"
        if not is_address(host) or self.allows(host):
            return None
        return f"{host} is neither a public address nor one that this service was told to allow"


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == block.version and address in block for block in networks)
