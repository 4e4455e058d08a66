"""Which addresses may be connected to: public ones, and networks that were expressly allowed.

Knows addresses only, no names and no sockets. The lists are written out, because
`ipaddress.is_global` is no egress filter: it is true for multicast, for the 6to4 relay anycast, for
168.63.129.16 (a cloud's metadata), for NAT64 of private addresses, and it changes with the Python
version.

IPv6 is allowed by exception: only global unicast (2000::/3) less the special-purpose blocks within
it. That shuts out mapped, compatible, NAT64, unique-local, link-local, site-local and multicast
addresses, so no IPv4 address hides in an IPv6 one.

Source: the IANA special-purpose address registries (RFC 6890 and successors).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

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


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the Internet may be reached at."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in DENIED_IPV4)
    return address in GLOBAL_UNICAST_IPV6 and not any(address in block for block in DENIED_IPV6)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; raises ValueError, naming the text, where one is none."""
    return tuple(ip_network(text) for text in texts)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Public addresses, and what the operator allowed beside them (`HOOKLINE_EGRESS_ALLOW`)."""

    allow: tuple[Network, ...] = ()

    def allows(self, address: str) -> bool:
        """Whether an address may be connected to; what is no address may not.

        A zone id is dropped: it picks an interface, not another address.
        """
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if any(parsed.version == block.version and parsed in block for block in self.allow):
            return True
        return is_public(parsed)

    def allows_all(self, addresses: Iterable[str]) -> bool:
        """Whether every address of a name may be connected to: one that may not taints the name."""
        return all(self.allows(address) for address in addresses)

    def check_literal(self, host: str) -> str | None:
        """Why a URL with this host is refused when it is created; None where it is not.

        Only literals are judged here. A name is judged at every connection, by what it leads to
        then.
        """
        text = host.removeprefix("[").removesuffix("]")
        try:
            ip_address(text.partition("%")[0])
        except ValueError:
            return None
        if self.allows(text):
            return None
        return f"{text} is neither a public address nor one that this service was told to allow"
