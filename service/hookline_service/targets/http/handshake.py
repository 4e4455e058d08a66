"""The handshake of the CloudEvents webhook specification: ask a target for its consent.

An OPTIONS request names this deployment (`WebHook-Request-Origin`) and the rate it wants
(`WebHook-Request-Rate`); the target consents with a 2xx that allows this origin, or any, and may
set a rate, in requests a minute. The request uses the same transport and checks as deliveries, and
the target's own headers, but no signature: there is no body to sign.

Source: "HTTP 1.1 Web Hooks for Event Delivery" 1.0.2, section 4. Consent by a callback is not
supported.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.audit_view import redacted_url
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.sender import Endpoint

_RATE = re.compile(rb"[1-9][0-9]{0,8}", re.ASCII)
_ANY = b"*"


class ConsentRefusedError(Exception):
    """The target did not consent; the text is for people.

    Receivers take tokens in a URL's query, so the text contains only the names of its parameters.
    """

    def __init__(self, url: str, text: str, *, http_status: int | None = None) -> None:
        self.url = redacted_url(url)
        super().__init__(f"{self.url} {text}")
        self.http_status = http_status


class HandshakeUnavailableError(Exception):
    """The request could not be sent because of an internal error."""


class Consent(NamedTuple):
    """What a target allows."""

    per_minute: int | None
    """Requests a minute; None: no limit."""


class Handshake:
    """Sends handshake requests."""

    def __init__(self, transport: httpx.AsyncBaseTransport, origin_name: str) -> None:
        """`origin_name` names this deployment to targets."""
        self._transport = transport
        self._origin_name = origin_name.encode("ascii")

    async def ask(
        self, endpoints: Sequence[Endpoint], timeout_s: float, per_minute: int | None
    ) -> Consent:
        """Ask every URL of a target within one deadline; return the lowest of their rates.

        `per_minute` is the requested rate. Raises `ConsentRefusedError` and
        `HandshakeUnavailableError`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        rates: list[int] = []
        for endpoint in endpoints:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            rate = await self._ask_one(endpoint, left_s, per_minute)
            if rate is not None:
                rates.append(rate)
        return Consent(min(rates, default=None))

    async def _ask_one(
        self, endpoint: Endpoint, timeout_s: float, per_minute: int | None
    ) -> int | None:
        headers = [*endpoint.headers, (b"webhook-request-origin", self._origin_name)]
        if per_minute is not None:
            headers.append((b"webhook-request-rate", b"%d" % per_minute))
        request = httpx.Request(
            "OPTIONS",
            endpoint.http_url,
            headers=[*headers, (b"content-length", b"0")],
            extensions={
                "timeout_s": timeout_s,
                "origin": endpoint.origin,
                "target": endpoint.request_target,
                "tenant_id": endpoint.tenant_id,
            },
        )
        try:
            response = await self._transport.handle_async_request(request)
        except AttemptFailure as failure:
            if failure.kind is AttemptOutcome.INTERNAL_ERROR:
                raise HandshakeUnavailableError(failure.message) from None
            raise ConsentRefusedError(endpoint.url, f"was not reached: {failure.message}") from None
        await response.aclose()
        return self._rate_of(response, endpoint.url)

    def _rate_of(self, response: httpx.Response, url: str) -> int | None:
        """Return the rate that a response allows; None: any rate."""
        status = response.status_code
        if not 200 <= status < 300:  # noqa: PLR2004 - 2xx is what success is called
            raise ConsentRefusedError(url, f"answered {status}", http_status=status)
        found = {name.lower(): value.strip() for name, value in response.headers.raw}
        allowed = found.get(b"webhook-allowed-origin", b"")
        if allowed != _ANY and allowed.lower() != self._origin_name.lower():
            raise ConsentRefusedError(
                url,
                f"answered {status}, and its WebHook-Allowed-Origin is not"
                f" {self._origin_name.decode()} nor *",
                http_status=status,
            )
        rate = found.get(b"webhook-allowed-rate", _ANY)
        if rate == _ANY:
            return None
        if not _RATE.fullmatch(rate):
            text = f"answered {status}, and its WebHook-Allowed-Rate is neither a number nor *"
            raise ConsentRefusedError(url, text, http_status=status)
        return int(rate)
