"""An origin: whom a connection leads to. Connections are shared by origin, never by address.

Two names behind one address may be two owners with two certificates: a pool by address would send
one tenant's request over another's TLS connection. All connections of a transport verify against
the same authorities and present no certificate of their own, so scheme, name and port are the whole
identity.
"""

from __future__ import annotations

from typing import NamedTuple

import httpx

from service.domain.target import DEFAULT_PORTS


class Origin(NamedTuple):
    """A scheme, a host and a port, by which connections are pooled and certificates verified."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets."""
    port: int


def origin_of(url: httpx.URL) -> Origin:
    """The origin of a URL; raises `httpx.UnsupportedProtocol` where it is not http or https."""
    if url.scheme not in DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol(f"cannot send to a URL of the scheme {url.scheme!r}")
    # `url.host` would decode xn-- names, and raise where they decode to nothing.
    host = url.raw_host.decode("ascii")
    return Origin(url.scheme, host, url.port or DEFAULT_PORTS[url.scheme])
