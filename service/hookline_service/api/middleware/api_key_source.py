"""API keys as a source of identity: results are cached, and read again while they are used.

Theory of operation. A token is identified by a keyed hash, so that memory holds no tokens; a result
is valid for `BELIEVED_S`, counted from before it was read. Every `REFRESH_S` the keys used since
are read again, in one statement, so that a key in use is never looked up while a call waits; unused
ones are dropped. So a revocation, and a tenant's deletion, take effect on every node within
`BELIEVED_S`, even if the node loses its connection, and without any notification.

Tokens that are not cached are looked up, all those of a moment in one statement, one statement at a
time: unauthenticated clients cost the database one statement and one connection, however many there
are. Invalid tokens are cached in a table of their own, so that they evict no valid ones. Unknown
ids and wrong secrets take the same time.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeVar

import structlog

from hookline_service.api.middleware.authentication import AuthContext, Metadata, bearer_token_in
from hookline_service.domain.api_key import (
    DIGEST_BYTES,
    TOKEN_PREFIX,
    api_key_name,
    digest_of,
    key_id_in,
)
from hookline_service.domain.caller import Caller
from hookline_service.domain.errors import Reason, ResourceExhaustedError, unauthenticated
from hookline_service.pipeline.clock import Clock
from hookline_service.store.api_keys import ApiKeyLookup, FoundKey
from hookline_service.store.database import TRANSIENT, unavailable

BELIEVED_S: Final = 3.0
REFRESH_S: Final = 1.0
TOUCH_S: Final = 60.0
"""The least interval at which a node records that a key is in use, in seconds."""

_FINGERPRINT_BYTES = 16
_NO_DIGEST = bytes(DIGEST_BYTES)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _ValidKey:
    """A token that was valid when it was read."""

    key_id: str
    digest: bytes
    caller: Caller
    read_s: float
    """The time just before it was read."""
    expires_s: float
    was_used: bool = True
    touched_s: float = -math.inf


@dataclass(slots=True)
class _Lookup:
    """A token that is being looked up."""

    key_id: str
    digest: bytes
    answer: asyncio.Future[_ValidKey | None]


class ApiKeySource:
    """Authenticates calls by an API key."""

    def __init__(
        self,
        lookup: ApiKeyLookup,
        deployment_key: bytes,
        clock: Clock,
        *,
        max_cached: int,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`max_cached`: the bound on cached tokens, on invalid ones, and on calls that wait."""
        self._key_lookup = lookup
        self._deployment_key = deployment_key
        self._clock = clock
        self._max_cached = max_cached
        self._salt = random_bytes(32)
        self._valid: dict[bytes, _ValidKey] = {}
        self._refused: dict[bytes, float] = {}
        """Until when an invalid token is not looked up again."""
        self._lookups: dict[bytes, _Lookup] = {}
        self._ended: set[str] = set()
        """Keys revoked on this node since the last read began: it may have read them as valid."""
        self._waiting = 0
        """Calls that wait for a lookup."""
        self._refreshed_s = -math.inf
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read keys."""
        self._task = asyncio.create_task(self._run(), name="api keys")

    async def stop(self) -> None:
        """Stop reading; calls that still wait are refused, since the node stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for lookup in self._lookups.values():
            lookup.answer.cancel()
        await self._key_lookup.close()

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Return the caller of an API key; None: the call carries none."""
        del auth_context, peer
        token = bearer_token_in(metadata)
        if token is None or not token.startswith(TOKEN_PREFIX):
            return None
        fingerprint = self._fingerprint(token)
        now_s = self._clock.boottime_s()
        key: _ValidKey | None = self._valid.get(fingerprint)
        if key is None or now_s >= key.read_s + BELIEVED_S:
            if self._refused.get(fingerprint, -math.inf) > now_s:
                raise unauthenticated()
            key = await self._find(fingerprint, token)
        if key is None or self._clock.boottime_s() >= key.expires_s:
            raise unauthenticated()
        key.was_used = True
        return key.caller

    def forget(self, key_id: str) -> None:
        """Drop a key that a call on this node has revoked: it is refused here at once."""
        self._ended.add(key_id)
        for fingerprint in [f for f, key in self._valid.items() if key.key_id == key_id]:
            del self._valid[fingerprint]

    def _fingerprint(self, token: str) -> bytes:
        data = token.encode(errors="backslashreplace")
        return blake2b(data, key=self._salt, digest_size=_FINGERPRINT_BYTES).digest()

    async def _find(self, fingerprint: bytes, token: str) -> _ValidKey | None:
        key_id = key_id_in(token)
        if key_id is None:
            return None
        if self._waiting >= self._max_cached:
            raise ResourceExhaustedError(
                f"{self._max_cached:,} calls wait for keys to be looked up, as many as this node"
                " takes",
                Reason.OVERLOADED,
                retry_after_s=1.0,
                metadata={"limit": "HOOKLINE_MAX_CACHED_KEYS", "maximum": str(self._max_cached)},
            )
        lookup = self._lookups.get(fingerprint)
        if lookup is None:
            answer = asyncio.get_running_loop().create_future()
            digest = digest_of(token, self._deployment_key)
            lookup = self._lookups[fingerprint] = _Lookup(key_id, digest, answer)
            self._wake.set()
        self._waiting += 1
        try:
            return await asyncio.shield(lookup.answer)
        finally:
            self._waiting -= 1

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.read()
            except Exception as error:  # noqa: BLE001 - waiting calls were given the error
                if not isinstance(error, TRANSIENT):
                    _log.exception("api_key_refresh_broken")

    async def read(self) -> None:
        """Answer pending lookups, and read used keys again where that is due."""
        now_s = self._clock.boottime_s()
        is_due = now_s >= self._refreshed_s + REFRESH_S
        used = {f: key for f, key in self._valid.items() if is_due and key.was_used}
        lookups = dict(self._lookups)
        self._ended.clear()
        ids = {q.key_id for q in lookups.values()} | {key.key_id for key in used.values()}
        try:
            found = await self._key_lookup.find(ids) if ids else {}
        except Exception as error:
            for fingerprint, lookup in lookups.items():
                del self._lookups[fingerprint]
                if not lookup.answer.done():
                    lookup.answer.set_exception(_error_of(error))
                    lookup.answer.exception()  # its calls may all have been cancelled
            raise
        for key_id in self._ended:
            found.pop(key_id, None)
        for fingerprint, key in used.items():
            self._take(fingerprint, key, found.get(key.key_id), now_s)
        for fingerprint, lookup in lookups.items():
            del self._lookups[fingerprint]
            answer = self._take(fingerprint, lookup, found.get(lookup.key_id), now_s)
            if not lookup.answer.done():
                lookup.answer.set_result(answer)
        if is_due:
            self._refreshed_s = now_s
            self._drop_expired(now_s)
            await self._record_use(now_s)

    def _take(
        self,
        fingerprint: bytes,
        looked_up: _Lookup | _ValidKey,
        found: FoundKey | None,
        now_s: float,
    ) -> _ValidKey | None:
        """Cache what was read."""
        fits = hmac.compare_digest(looked_up.digest, _NO_DIGEST if found is None else found.digest)
        if found is None or not (fits and found.is_live and found.expires_in_s > 0):
            self._valid.pop(fingerprint, None)
            _put(self._refused, fingerprint, now_s + BELIEVED_S, self._max_cached)
            _log.debug("api_key_rejected", key_id=looked_up.key_id, is_known=found is not None)
            return None
        key = self._valid.get(fingerprint)
        if key is None:
            caller = Caller(
                principal=api_key_name(found.key_id),
                scopes=found.scopes,
                tenant_id=found.tenant_id,
                expire_time=found.expire_time,
            )
            key = _ValidKey(found.key_id, found.digest, caller, now_s, math.inf)
            _put(self._valid, fingerprint, key, self._max_cached)
        key.read_s, key.expires_s = now_s, now_s + found.expires_in_s
        key.was_used = isinstance(looked_up, _Lookup)
        return key

    def _drop_expired(self, now_s: float) -> None:
        self._valid = {f: key for f, key in self._valid.items() if now_s < key.read_s + BELIEVED_S}
        self._refused = {f: until_s for f, until_s in self._refused.items() if now_s < until_s}

    async def _record_use(self, now_s: float) -> None:
        """Record the use of keys, at most once a minute for each; no call waits for it."""
        due = [k for k in self._valid.values() if now_s >= k.touched_s + TOUCH_S]
        if not due:
            return
        try:
            await self._key_lookup.touch({key.key_id for key in due})
        except TRANSIENT as error:
            _log.warning("api_key_use_not_recorded", error=str(error))
            return
        for key in due:
            key.touched_s = now_s


def _put(cache: dict[bytes, T], fingerprint: bytes, value: T, most: int) -> None:
    """Cache a value; where the cache is full, its oldest entry is evicted."""
    if len(cache) >= most and fingerprint not in cache:
        del cache[next(iter(cache))]
    cache[fingerprint] = value


def _error_of(error: Exception) -> Exception:
    return unavailable(error) if isinstance(error, TRANSIENT) else error
