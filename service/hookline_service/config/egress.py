"""What deliveries may reach, and by which way.

Owns what these settings are called, and how they contradict one another. Must not know who uses
them.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from pathlib import Path
from typing import Final, TypeVar

from hookline_service.config.reading import Reader, integer, parse_file, switch
from hookline_service.domain.target import MAX_HOST_LENGTH
from hookline_service.targets.http.dialer import HANDSHAKES_MAX
from hookline_service.targets.http.egress import (
    DEFAULT_DENIED_PORTS,
    DEFAULT_PORTS,
    NAT64_LENGTHS,
    NO_HOSTS,
    NO_PORTS,
    EgressPolicy,
    HostList,
    Network,
    PortList,
    parse_hosts,
    parse_nat64,
    parse_networks,
    parse_ports,
)
from hookline_service.targets.http.proxy import EgressProxy, parse_proxy
from hookline_service.targets.http.tenant_shares import CERTIFICATE_BYTES_MAX
from hookline_service.targets.http.tls import HANDSHAKE_BYTES_MAX, make_tls_context

T = TypeVar("T")

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", re.ASCII)
_LOOPBACK: Final = parse_networks(["127.0.0.0/8", "::1/128"])


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """All that can be set about the way out."""

    policy: EgressPolicy
    """HOOKLINE_EGRESS_ALLOW, _DENY, _PUBLIC, _ALLOW_HOSTS, _DENY_HOSTS, _PORTS, _DENY_PORTS,
    _NAT64"""
    proxy: EgressProxy | None = None
    """HOOKLINE_EGRESS_PROXY, _PROXY_RESOLVES; None: connections are direct"""
    ca_file: Path | None = None
    """HOOKLINE_EGRESS_CA_FILE: authorities beside the system's, for targets of one's own"""
    origin_name: str = "hookline"
    """HOOKLINE_WEBHOOK_ORIGIN: who asks targets for their consent"""
    handshakes_max: int = HANDSHAKES_MAX
    """HOOKLINE_EGRESS_HANDSHAKES"""
    handshake_bytes_max: int = HANDSHAKE_BYTES_MAX
    """HOOKLINE_EGRESS_HANDSHAKE_BYTES"""
    certificate_bytes_max: int = CERTIFICATE_BYTES_MAX
    """HOOKLINE_EGRESS_CERTIFICATE_BYTES"""


def read_egress(
    read: Reader, fitting: Callable[[int, int], int], *, is_dev: bool
) -> EgressSettings:
    """Read them; `dev` may reach this machine."""
    proxy = read.secret("EGRESS_PROXY", parse_proxy, None)
    resolves = read("EGRESS_PROXY_RESOLVES", switch, default=False)
    if proxy is not None:
        proxy = replace(proxy, resolves=resolves)
    elif resolves:
        read.problems.append(
            "HOOKLINE_EGRESS_PROXY_RESOLVES is on, and HOOKLINE_EGRESS_PROXY is not set: there is"
            " no proxy to resolve names"
        )
    policy = EgressPolicy(
        allow=(*read("EGRESS_ALLOW", _networks, ()), *(_LOOPBACK if is_dev else ())),
        deny=read("EGRESS_DENY", _networks, ()),
        is_public_allowed=read("EGRESS_PUBLIC", switch, default=True),
        allow_hosts=read("EGRESS_ALLOW_HOSTS", _hosts, NO_HOSTS),
        deny_hosts=read("EGRESS_DENY_HOSTS", _hosts, NO_HOSTS),
        ports=read("EGRESS_PORTS", _ports, DEFAULT_PORTS),
        deny_ports=read("EGRESS_DENY_PORTS", _denied_ports, DEFAULT_DENIED_PORTS),
        nat64=read("EGRESS_NAT64", _nat64, ()),
    )
    if not (policy.is_public_allowed or policy.allow):
        read.problems.append(
            "HOOKLINE_EGRESS_PUBLIC is off, and HOOKLINE_EGRESS_ALLOW is not set: nothing could be"
            " delivered to anybody"
        )
    return EgressSettings(
        policy,
        proxy,
        read("EGRESS_CA_FILE", _ca_file, None),
        read("WEBHOOK_ORIGIN", _host_name, "hookline"),
        read("EGRESS_HANDSHAKES", integer(4, 4_096), fitting(HANDSHAKES_MAX, 4_096)),
        read("EGRESS_HANDSHAKE_BYTES", integer(4_096, 102_400, "bytes"), HANDSHAKE_BYTES_MAX),
        read(
            "EGRESS_CERTIFICATE_BYTES",
            integer(1_048_576, 4_294_967_296, "bytes"),
            fitting(CERTIFICATE_BYTES_MAX, 4_294_967_296),
        ),
    )


def _host_name(text: str) -> str:
    """A name that targets know this deployment by."""
    if len(text) > MAX_HOST_LENGTH or not _HOST_NAME.fullmatch(text):
        raise ValueError("must be a name such as hookline.example.com")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, joined by commas."""
    return _list(text, parse_networks, "must be networks such as 10.1.0.0/16,fd00::/8")


def _hosts(text: str) -> HostList:
    """Hosts, joined by commas."""
    return _list(text, parse_hosts, "must be hosts such as hooks.example,*.internal.example")


def _ports(text: str) -> PortList:
    """Ports and ranges of them, joined by commas."""
    return _list(text, parse_ports, "must be ports such as 80,443,1024-65535")


def _denied_ports(text: str) -> PortList:
    """The same, or `none`."""
    if text == "none":
        return NO_PORTS
    return _list(text, parse_ports, "must be none, or ports such as 3306,27017-27019")


def _nat64(text: str) -> tuple[IPv6Network, ...]:
    """Prefixes, joined by commas."""
    lengths = ", ".join(map(str, sorted(NAT64_LENGTHS)))
    return _list(text, parse_nat64, f"must be NAT64 prefixes of {lengths} bits: 2001:db8:64::/96")


def _list(text: str, parse: Callable[[list[str]], T], allowed: str) -> T:
    try:
        return parse([part.strip() for part in text.split(",")])
    except ValueError:
        raise ValueError(allowed) from None


def _ca_file(text: str) -> Path:
    """A file of certificates; read once here, so that a start tells what a delivery would."""
    path = parse_file(text)
    try:
        make_tls_context(path)
    except (ssl.SSLError, OSError):
        raise ValueError("must be a file of certificates in PEM format") from None
    return path
