"""API keys as a source of identity: what is known of them is kept at hand, and read again.

Theory of operation. A token is told by a keyed hash of it, so that memory holds none; what that
stands for is believed for `BELIEVED_S` from before it was read. Every `REFRESH_S` what was used
since is read again, in one statement, so that a key in use is never looked up while a call waits;
what was not used is forgotten. So a revocation, and a tenant's deletion, count on every node
within `BELIEVED_S`, whatever becomes of this node's connection, and nobody needs to tell.

What is not at hand is looked up, all questions of a moment in one statement, one at a time: the
database sees a statement and a connection, however many strangers knock. What was found to be no
good is kept too, by itself, so that it crowds nobody out. Unknown ids and wrong secrets cost the
same.
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
"""How often at most a node notes that a key is in use, in seconds."""

_FINGERPRINT_BYTES = 16
_NO_DIGEST = bytes(DIGEST_BYTES)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """A token that is good, as far as is known."""

    key_id: str
    digest: bytes
    caller: Caller
    read_s: float
    """From before it was read."""
    expires_s: float
    was_used: bool = True
    touched_s: float = -math.inf


@dataclass(slots=True)
class _Question:
    """A token that is being looked up."""

    key_id: str
    digest: bytes
    answer: asyncio.Future[_Known | None]


class ApiKeySource:
    """Knows who shows an API key."""

    def __init__(
        self,
        lookup: ApiKeyLookup,
        deployment_key: bytes,
        clock: Clock,
        *,
        max_cached: int,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`max_cached`: tokens that are remembered, as many bad ones, and calls that wait."""
        self._lookup = lookup
        self._deployment_key = deployment_key
        self._clock = clock
        self._max_cached = max_cached
        self._salt = random_bytes(32)
        self._known: dict[bytes, _Known] = {}
        self._refused: dict[bytes, float] = {}
        """Until when a token that is no good is not looked up again."""
        self._questions: dict[bytes, _Question] = {}
        self._ended: set[str] = set()
        """Keys that were ended here since the last reading began: it may have seen them alive."""
        self._waiting = 0
        """Calls that wait for an answer."""
        self._refreshed_s = -math.inf
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="api keys")

    async def stop(self) -> None:
        """End; who still waits for an answer is told that this node stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for question in self._questions.values():
            question.answer.cancel()
        await self._lookup.close()

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """The key that a call shows; None: it shows none."""
        del auth_context, peer
        token = bearer_token_in(metadata)
        if token is None or not token.startswith(TOKEN_PREFIX):
            return None
        fingerprint = self._fingerprint(token)
        now_s = self._clock.boottime_s()
        known: _Known | None = self._known.get(fingerprint)
        if known is None or now_s >= known.read_s + BELIEVED_S:
            if self._refused.get(fingerprint, -math.inf) > now_s:
                raise unauthenticated()
            known = await self._ask(fingerprint, token)
        if known is None or self._clock.boottime_s() >= known.expires_s:
            raise unauthenticated()
        known.was_used = True
        return known.caller

    def forget(self, key_id: str) -> None:
        """A call on this node has just ended the key: it counts here at once."""
        self._ended.add(key_id)
        for fingerprint in [f for f, known in self._known.items() if known.key_id == key_id]:
            del self._known[fingerprint]

    def _fingerprint(self, token: str) -> bytes:
        data = token.encode(errors="backslashreplace")
        return blake2b(data, key=self._salt, digest_size=_FINGERPRINT_BYTES).digest()

    async def _ask(self, fingerprint: bytes, token: str) -> _Known | None:
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
        question = self._questions.get(fingerprint)
        if question is None:
            answer = asyncio.get_running_loop().create_future()
            digest = digest_of(token, self._deployment_key)
            question = self._questions[fingerprint] = _Question(key_id, digest, answer)
            self._wake.set()
        self._waiting += 1
        try:
            return await asyncio.shield(question.answer)
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
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits is told
                if not isinstance(error, TRANSIENT):
                    _log.exception("api_keys_broken")

    async def read(self) -> None:
        """Answer what is asked; and read again what was used, if it is time for that."""
        now_s = self._clock.boottime_s()
        is_due = now_s >= self._refreshed_s + REFRESH_S
        used = {f: known for f, known in self._known.items() if is_due and known.was_used}
        questions = dict(self._questions)
        self._ended.clear()
        ids = {q.key_id for q in questions.values()} | {known.key_id for known in used.values()}
        try:
            found = await self._lookup.find(ids) if ids else {}
        except Exception as error:
            for fingerprint, question in questions.items():
                del self._questions[fingerprint]
                if not question.answer.done():
                    question.answer.set_exception(_for_caller(error))
                    question.answer.exception()  # nobody may be waiting any more
            raise
        for key_id in self._ended:
            found.pop(key_id, None)
        for fingerprint, known in used.items():
            self._take(fingerprint, known, found.get(known.key_id), now_s)
        for fingerprint, question in questions.items():
            del self._questions[fingerprint]
            answer = self._take(fingerprint, question, found.get(question.key_id), now_s)
            if not question.answer.done():
                question.answer.set_result(answer)
        if is_due:
            self._refreshed_s = now_s
            self._forget_old(now_s)
            await self._note_use(now_s)

    def _take(
        self, fingerprint: bytes, asked: _Question | _Known, found: FoundKey | None, now_s: float
    ) -> _Known | None:
        """Believe what was read from now on."""
        fits = hmac.compare_digest(asked.digest, _NO_DIGEST if found is None else found.digest)
        if found is None or not (fits and found.is_live and found.expires_in_s > 0):
            self._known.pop(fingerprint, None)
            _put(self._refused, fingerprint, now_s + BELIEVED_S, self._max_cached)
            _log.debug("api_key_refused", key_id=asked.key_id, is_known=found is not None)
            return None
        known = self._known.get(fingerprint)
        if known is None:
            caller = Caller(
                principal=api_key_name(found.key_id),
                scopes=found.scopes,
                tenant_id=found.tenant_id,
                expire_time=found.expire_time,
            )
            known = _Known(found.key_id, found.digest, caller, now_s, math.inf)
            _put(self._known, fingerprint, known, self._max_cached)
        known.read_s, known.expires_s = now_s, now_s + found.expires_in_s
        known.was_used = isinstance(asked, _Question)
        return known

    def _forget_old(self, now_s: float) -> None:
        self._known = {
            f: known for f, known in self._known.items() if now_s < known.read_s + BELIEVED_S
        }
        self._refused = {f: until_s for f, until_s in self._refused.items() if now_s < until_s}

    async def _note_use(self, now_s: float) -> None:
        """Once a minute and key: nobody waits for it, and what is lost is a minute."""
        due = [k for k in self._known.values() if now_s >= k.touched_s + TOUCH_S]
        if not due:
            return
        try:
            await self._lookup.touch({known.key_id for known in due})
        except TRANSIENT as error:
            _log.warning("api_key_use_not_noted", error=str(error))
            return
        for known in due:
            known.touched_s = now_s


def _put(cache: dict[bytes, T], fingerprint: bytes, value: T, most: int) -> None:
    """Keep it; what was put in first goes where there is no room."""
    if len(cache) >= most and fingerprint not in cache:
        del cache[next(iter(cache))]
    cache[fingerprint] = value


def _for_caller(error: Exception) -> Exception:
    return unavailable(error) if isinstance(error, TRANSIENT) else error
