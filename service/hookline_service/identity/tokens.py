"""Tokens of an OIDC issuer (JWT, RFC 7519, RFC 8725): whose one is, and what it is good for.

A token counts if one of the issuer's keys has signed it by an algorithm of that key's kind, and it
names the issuer and this service as its audience, a subject, an end that has not come and, as `nbf`
or else `iat`, a beginning that has; to the clock a little is allowed. Scopes are the words that
begin with `hookline:` in one claim, the tenant is another one's value. Whatever is wrong with it,
its sender hears the same as anybody who is not known.

A token that was good is remembered until it ends, or the issuer's keys change: a signature costs
ten times what all else does at the door, and streams are asked for theirs again and again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import jwt
import structlog

from hookline_service.domain.caller import Caller
from hookline_service.domain.errors import Reason, UnavailableError, unauthenticated
from hookline_service.domain.names import check_text
from hookline_service.identity.grants import scopes_of, tenant_of
from hookline_service.identity.key_set import ALGORITHMS, KeySet, PublicKey

SCOPE_PREFIX: Final = "hookline:"
MAX_TOKEN_LENGTH: Final = 8 * 1024
MAX_SUBJECT_BYTES: Final = 255
MAX_REMEMBERED: Final = 4_096

_TYPES: Final = {None, "jwt", "at+jwt", "application/at+jwt"}
_LATEST_S: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
_REQUIRED: Final = ["iss", "aud", "sub", "exp"]

_log = structlog.get_logger(__name__)


class KeySource(Protocol):
    """Where an issuer's keys come from."""

    def current(self) -> KeySet | None:
        """Those that count; None: none is known."""

    async def renew(self) -> None:
        """Look for newer ones, unless that was just done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say, and where."""

    issuer: str
    audience: str
    scopes_claim: str
    tenant_claim: str
    leeway_s: float


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    ends_s: float
    """Unix time."""
    keys: KeySet
    """Those that it was judged by."""


class _RefusedError(Exception):
    """Why a token does not count; for the log alone."""


class Tokens:
    """Tells whose a token is."""

    def __init__(
        self,
        rules: TokenRules,
        keys: KeySource,
        *,
        max_remembered: int = MAX_REMEMBERED,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._max_remembered = max_remembered
        self._unix_s = unix_s
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._waiting = 0
        """Calls that wait for newer keys."""

    async def caller_of(self, token: str) -> Caller:
        """Whose it is. Raises `unauthenticated()`, or `UnavailableError` where no key is known."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise unauthenticated()
        keys = self._keys.current()
        if keys is None:
            await self._renew()
            keys = self._keys.current()
        if keys is None:
            raise _no_keys()
        known = self._known.get(token)
        if known is not None and known.keys is keys and self._unix_s() < known.ends_s:
            self._known.move_to_end(token)
            return known.caller
        self._known.pop(token, None)
        try:
            return await self._judge(token, keys)
        except _RefusedError as error:
            _log.debug("token_rejected", reason=str(error))
            raise unauthenticated() from None

    async def _renew(self) -> None:
        """Look for newer keys; raises where as many wait for them as tokens are remembered.

        Anybody can name a key that nobody knows, and an issuer may be slow.
        """
        if self._waiting >= self._max_remembered:
            raise _no_keys()
        self._waiting += 1
        try:
            await self._keys.renew()
        finally:
            self._waiting -= 1

    async def _judge(self, token: str, keys: KeySet) -> Caller:
        key_id, algorithm = _header_of(token)
        key = keys.find(key_id, algorithm)
        if key is None:
            await self._renew()
            keys = self._keys.current() or keys
            key = keys.find(key_id, algorithm)
        if key is None:
            raise _RefusedError("its key is not known")
        claims = self._verified(token, key, algorithm)
        caller = self._caller_by(claims)
        ends_s = int(claims["exp"]) + self._rules.leeway_s
        self._known[token] = _Known(caller, ends_s, keys)
        if len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        return caller

    def _verified(self, token: str, key: PublicKey, algorithm: str) -> Mapping[str, Any]:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],  # that of the key, which was found by it
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=self._rules.leeway_s,
                options={"require": _REQUIRED},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _RefusedError(str(error)) from error
        if claims.get("nbf") is None and claims.get("iat") is None:
            raise _RefusedError("it says neither nbf nor iat")
        return claims

    def _caller_by(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims["sub"]
        if not subject or check_text(subject, MAX_SUBJECT_BYTES) is not None:
            raise _RefusedError("its subject cannot be shown")
        said = _claim(claims, self._rules.scopes_claim)
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        ours = [word for word in words if isinstance(word, str) and word.startswith(SCOPE_PREFIX)]
        try:
            return Caller(
                principal=f"sub:{subject}",
                scopes=scopes_of(word.removeprefix(SCOPE_PREFIX) for word in ours),
                tenant_id=tenant_of(_claim(claims, self._rules.tenant_claim)),
                expire_time=datetime.fromtimestamp(min(int(claims["exp"]), _LATEST_S), UTC),
            )
        except ValueError as error:
            raise _RefusedError(str(error)) from error


def _no_keys() -> UnavailableError:
    return UnavailableError(
        "the keys of the issuer of tokens cannot be had; repeat the call later",
        Reason.ISSUER_UNAVAILABLE,
        retry_after_s=5.0,
    )


def _header_of(token: str) -> tuple[str | None, str]:
    """The key's id and the algorithm that a token names. Nothing of this is verified yet.

    PyJWT has looked at what any header must be: an id that is a text, and nothing critical (RFC
    7515 section 4.1.11) that it does not know.
    """
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise _RefusedError(str(error)) from error
    key_id, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ")
    if algorithm not in ALGORITHMS:
        raise _RefusedError("its algorithm is not allowed")
    if (kind.lower() if isinstance(kind, str) else kind) not in _TYPES:
        raise _RefusedError("it is of a kind that is not known here")
    return key_id, str(algorithm)


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """A claim by its name, or by the path to it, `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
