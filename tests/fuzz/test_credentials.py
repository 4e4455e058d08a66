"""What callers show: keys, tokens and the context of a trace are read in one way, or not at all."""

from __future__ import annotations

import base64
import contextlib
import re
from typing import Any

import pytest
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hookline_service.domain.api_key import ID_LENGTH, SECRET_LENGTH, key_id_in, make_token
from hookline_service.domain.errors import UnauthenticatedError
from hookline_service.identity.files import SourceError
from hookline_service.identity.key_set import KeySet, parse_key_set
from hookline_service.identity.tokens import Tokens
from hookline_service.telemetry.context import PACKED_BYTES, pack, parse_traceparent, unpack
from tests.fuzz.mutation import bytes_corpus, corpus, edited, fuzz
from tests.identity.issuer import In, Issuer
from tests.identity.test_tokens import RULES, Keys

KEY = make_token("4rTq8sB0aZ1k", lambda below: 7 % below)
KEY_TOKENS = ["hk_", "_", " ", "\n", "\x00", "\u0661", "\u0130", "\ud800", "Bearer "]
ISSUER = Issuer()
KEYS = parse_key_set(ISSUER.key_set(), "keys.json")
GOOD = [ISSUER.token(key_id, exp=In(86_400)) for key_id in ISSUER.keys]
"""Made when the tests are collected, valid however long the suite takes."""


def segment(text: str) -> str:
    """A part of a token, as JOSE writes it."""
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


JOSE_TOKENS = [
    ".", "..", "=", "A", "-", "_", "\n", "\x00", "\ud800", segment('{"alg":"none"}') + ".",
    segment('{"alg":"HS256","kid":"ES256"}') + ".", segment('{"alg":"ES256","crit":["x"]}') + ".",
    segment('{"alg":"ES256","jwk":{}}') + ".", segment("[]") + ".", segment('{"sub":"root"}') + ".",
]  # fmt: skip


@fuzz({"text": [KEY]}, text=edited([KEY], KEY_TOKENS))
def test_an_api_key_has_one_spelling(text: str) -> None:
    found = key_id_in(text)
    if found is not None:
        pattern = rf"hk_{found}_[0-9A-Za-z]{{{SECRET_LENGTH}}}"
        assert re.fullmatch(pattern, text)
        assert (len(found), found.isascii()) == (ID_LENGTH, True)


def parts(token: str) -> list[bytes] | None:
    """The bytes of a token's three parts, however they are written."""
    with contextlib.suppress(ValueError):
        return [base64.b64decode(part + "=" * (-len(part) % 4), b"-_") for part in token.split(".")]
    return None


@fuzz({"token": [*GOOD, ""]}, token=edited(GOOD, JOSE_TOKENS))
async def test_only_a_token_that_the_issuer_signed_counts(token: str) -> None:
    try:
        caller = await Tokens(RULES, Keys(KEYS)).caller_of(token)
    except UnauthenticatedError:
        assert token not in GOOD
        return
    assert caller.principal == "sub:orders@shop"
    assert parts(token) in [parts(good) for good in GOOD]


SETS = [
    ISSUER.key_set(), ISSUER.key_set("ES256"), b'{"keys":[{"kty":"oct","k":"AAAA"}]}', b"[]",
    b'{"keys":[{"kty":"RSA","alg":"none","n":"AQAB","e":"AQAB"}]}',
]  # fmt: skip
SET_TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b"null", b"1e999", b"[" * 200, b'"kty":"EC",',
    b'"kty":"oct",',
    b'"alg":"none",', b'"d":"AAAA",', b'"kid":null,', b'"kid":[],', b'"n":"",',
    b'"crv":"P-521",', b"\xff",
]  # fmt: skip


@fuzz({"content": SETS}, content=edited(SETS, SET_TOKENS))
def test_key_set_has_only_public_keys_or_is_rejected(content: bytes) -> None:
    found: KeySet | None = None
    with contextlib.suppress(SourceError):
        found = parse_key_set(content, "keys.json")
    keys: dict[tuple[str, str], Any] = dict(found.keys) if found else {}
    assert all(hasattr(key, "public_bytes") for key in keys.values())
    assert {algorithm for _, algorithm in keys} <= {"RS256", "PS256", "ES256", "EdDSA"}


TRACES = corpus("traceparents")
PROPAGATOR = TraceContextTextMapPropagator()


@fuzz(
    {"text": TRACES},
    text=edited(TRACES, ["-", "0", "f", "00-", "ff-", " ", "\n", "\x00", "\u0661"]),
)
def test_trace_context_is_read_as_other_parsers_read_it(text: str) -> None:
    ours = parse_traceparent(text)
    theirs = get_current_span(PROPAGATOR.extract({"traceparent": text})).get_span_context()
    if ours is None:
        return
    assert (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)
    assert ours.is_sampled == theirs.trace_flags.sampled
    packed = pack(ours.trace_id, ours.span_id, ours.flags)
    assert (len(packed), unpack(packed)) == (PACKED_BYTES, ours)


@pytest.mark.parametrize("raw", bytes_corpus("traceparents"))
def test_trace_context_in_bytes_is_read_as_text(raw: bytes) -> None:
    assert parse_traceparent(raw) == parse_traceparent(raw.decode())
