"""An origin: whom a connection leads to. Connections are shared by origin, never by address.

Two names behind one address may be two owners with two certificates: a pool by address would send
one tenant's request over another's TLS connection. All connections of a transport verify against
the same authorities; who shows a certificate of its own shares with nobody who shows another, or
none, since the target may have decided by it what to allow.
"""

from __future__ import annotations

from typing import NamedTuple

import httpx

from hookline_service.domain.target import DEFAULT_PORTS
from hookline_service.targets.http.client_certificate import ClientIdentity


class Origin(NamedTuple):
    """Scheme, host and port, and as whom: by these connections are pooled, hosts verified."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets."""
    port: int
    identity: ClientIdentity | None = None
    """The certificate that is shown; None: none is."""


def origin_of(url: httpx.URL) -> Origin:
    """The origin of a URL; raises `httpx.UnsupportedProtocol` where it is not http or https."""
    if url.scheme not in DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol(f"cannot send to a URL of the scheme {url.scheme!r}")
    # `url.host` would decode xn-- names, and raise where they decode to nothing.
    host = url.raw_host.decode("ascii")
    return Origin(url.scheme, host, url.port or DEFAULT_PORTS[url.scheme])
