"""A target made ready to be sent to: all that does not change from one request to the next.

Prepared once per revision of a subscription, so that a request costs a signature and a few bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from hookline_service.domain.subscription import HttpTarget
from hookline_service.domain.target import TargetUrl, check_headers, parse_target_url
from hookline_service.targets.http.client_certificate import ClientIdentity
from hookline_service.targets.http.origin import Origin
from hookline_service.targets.http.signature import Signer


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL of a target."""

    url: str
    http_url: httpx.URL
    origin: Origin
    request_target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """The headers of every request to it, `host` first."""
    tenant_id: str
    """Who named it."""


@dataclass(frozen=True, slots=True)
class PreparedTarget:
    """Where a subscription's requests go, and by whom they are signed."""

    endpoints: tuple[Endpoint, ...]
    """The target's URL, then its failover URLs."""
    timeout_s: float
    signer: Signer


def prepare_target(
    target: HttpTarget,
    signer: Signer,
    *,
    user_agent: str,
    tenant_id: str = "",
    secret_headers: Mapping[str, str] | None = None,
    identity: ClientIdentity | None = None,
) -> PreparedTarget:
    """Make a tenant's target ready; `user_agent` is `hookline/<version>`.

    `identity` is the certificate that its https servers are shown.

    Raises ValueError where a URL or a header is outside the grammar of `domain/target.py`: such a
    target should never have been accepted, and a line break in it would forge a request.
    """
    endpoints = prepare_endpoints(
        target,
        user_agent=user_agent,
        tenant_id=tenant_id,
        secret_headers=secret_headers,
        identity=identity,
    )
    return PreparedTarget(endpoints=endpoints, timeout_s=target.timeout_s, signer=signer)


def prepare_endpoints(
    target: HttpTarget,
    *,
    user_agent: str,
    tenant_id: str = "",
    secret_headers: Mapping[str, str] | None = None,
    identity: ClientIdentity | None = None,
) -> tuple[Endpoint, ...]:
    """The URLs of a target, made ready; raises as `prepare_target` does."""
    violations = check_headers(target.headers, secret_headers or {})
    if violations:
        raise ValueError(f"{violations[0].field} {violations[0].description}")
    common = (
        (b"user-agent", user_agent.encode("ascii")),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"identity"),
        *(
            (name.encode("ascii"), value.encode("ascii"))
            for headers in (target.headers, secret_headers or {})
            for name, value in headers.items()
        ),
    )
    return tuple(_endpoint_of(url, common, identity, tenant_id) for url in target.urls)


def _endpoint_of(
    url: str,
    common: tuple[tuple[bytes, bytes], ...],
    identity: ClientIdentity | None,
    tenant_id: str,
) -> Endpoint:
    parsed = parse_target_url(url)
    shown = identity if parsed.scheme == "https" else None
    return Endpoint(
        url=url,
        http_url=httpx.URL(url),
        origin=Origin(parsed.scheme, parsed.host, parsed.port, shown),
        request_target=parsed.request_target.encode("ascii"),
        headers=((b"host", _host_header(parsed)), *common),
        tenant_id=tenant_id,
    )


def _host_header(parsed: TargetUrl) -> bytes:
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return (host if parsed.is_default_port else f"{host}:{parsed.port}").encode("ascii")
