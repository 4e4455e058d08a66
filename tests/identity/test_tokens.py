"""Tokens: which are accepted, and the single answer to all that are rejected."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.errors import UnauthenticatedError, UnavailableError, unauthenticated
from hookline_service.identity.key_set import KeySet, parse_key_set
from hookline_service.identity.tokens import TokenRules, Tokens
from tests.identity.issuer import AUDIENCE, ISSUER, In, Issuer
from tests.waiting import until

RULES = TokenRules(
    issuer=ISSUER,
    audience=AUDIENCE,
    scopes_claim="scope",
    tenant_claim="hookline_tenant",
    leeway_s=30,
)


class Keys:
    """A source of keys that a test changes; `newer` is what a renewal brings."""

    def __init__(self, keys: KeySet | None, newer: KeySet | None = None) -> None:
        self.keys = keys
        self.newer = newer
        self.renewals = 0

    def current(self) -> KeySet | None:
        return self.keys

    async def renew(self) -> None:
        self.renewals += 1
        self.keys = self.newer or self.keys


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def all_keys(issuer: Issuer) -> Keys:
    return Keys(parse_key_set(issuer.key_set(), "keys.json"))


async def caller_of(issuer: Issuer, token: str, **rules: str) -> Caller:
    changed = TokenRules(**{name: getattr(RULES, name) for name in RULES.__slots__} | rules)
    return await Tokens(changed, all_keys(issuer)).caller_of(token)


@pytest.mark.parametrize("key_id", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_token_of_each_algorithm_is_accepted(issuer: Issuer, key_id: str) -> None:
    token = issuer.token(key_id)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert await caller_of(issuer, token) == Caller(
        principal="sub:orders@shop",
        scopes=frozenset({Scope.PUBLISH, Scope.OPERATE}),
        tenant_id="acme",
        expire_time=datetime.fromtimestamp(claims["exp"], UTC),
    )


async def test_token_may_expire_beyond_the_last_date(issuer: Issuer) -> None:
    caller = await caller_of(issuer, issuer.token(exp=10**15))
    assert caller.expire_time == datetime(9999, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "changes, scopes, tenant",
    [
        ({"hookline_tenant": "-"}, {Scope.PUBLISH, Scope.OPERATE}, None),
        ({"scope": ["hookline:admin", "other:x", 7]}, {Scope.ADMIN}, "acme"),
        ({"scope": "publish admin"}, set(), "acme"),
        ({"scope": None}, set(), "acme"),
        ({"scope": {"hookline:admin": 1}}, set(), "acme"),
        ({"aud": ["another", AUDIENCE]}, {Scope.PUBLISH, Scope.OPERATE}, "acme"),
        ({"nbf": None, "iat": In(-5)}, {Scope.PUBLISH, Scope.OPERATE}, "acme"),
        ({"nbf": In(15)}, {Scope.PUBLISH, Scope.OPERATE}, "acme"),
        ({"exp": In(-15)}, {Scope.PUBLISH, Scope.OPERATE}, "acme"),
    ],
    ids=["all-tenants", "list", "unprefixed", "none", "map", "audiences", "iat", "early", "late"],
)
async def test_claims_of_a_token_determine_its_grant(
    issuer: Issuer, changes: dict[str, Any], scopes: set[Scope], tenant: str | None
) -> None:
    caller = await caller_of(issuer, issuer.token(**changes))
    assert (caller.scopes, caller.tenant_id) == (frozenset(scopes), tenant)


async def test_configured_claims_may_be_nested(issuer: Issuer) -> None:
    claims: dict[str, Any] = {
        "realm_access": {"roles": ["hookline:manage"]},
        "https://example.org/tenant": "other",
    }
    token = issuer.token(**claims)
    caller = await caller_of(
        issuer,
        token,
        scopes_claim="realm_access.roles",
        tenant_claim="https://example.org/tenant",
    )
    assert (caller.scopes, caller.tenant_id) == (frozenset({Scope.MANAGE}), "other")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example.org/"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": []},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "a\0b"},
        {"exp": None},
        {"exp": In(-60)},
        {"exp": "soon"},
        {"exp": 1e400},
        {"nbf": In(600)},
        {"nbf": None},
        {"nbf": None, "iat": In(600)},
        {"iat": In(600)},
        {"hookline_tenant": None},
        {"hookline_tenant": ""},
        {"hookline_tenant": "Acme"},
        {"hookline_tenant": ["acme"]},
        {"scope": "hookline:publish hookline:everything"},
    ],
    ids=lambda changes: str(changes)[:40],
)
async def test_token_with_missing_or_invalid_claims_is_rejected(
    issuer: Issuer, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        await caller_of(issuer, issuer.token(**changes))
    assert str(caught.value) == str(unauthenticated())


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def with_header(token: str, **changes: object) -> str:
    """Another header before the same claims and signature."""
    header = jwt.get_unverified_header(token) | changes
    return ".".join((encoded(header), *token.split(".")[1:]))


async def test_forged_token_is_rejected(issuer: Issuer) -> None:
    good = issuer.token("RS256")
    header, claims, signature = good.split(".")
    public = issuer.keys["RS256"][1].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    more = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"scope": "hookline:admin"}
    forged = {
        "unsigned": f"{encoded({'alg': 'none', 'typ': 'JWT', 'kid': 'RS256'})}.{claims}.",
        "none-cased": f"{encoded({'alg': 'nOnE', 'kid': 'RS256'})}.{claims}.",
        "public-key-as-secret": hs256(pem, claims, "RS256"),
        "claims-changed": f"{header}.{encoded(more)}.{signature}",
        "signature-cut": good[:-8],
        "another-algorithm": with_header(good, alg="PS256"),
        "another-key": with_header(good, kid="PS256"),
        "unknown-key": with_header(good, kid="RS257"),
        "no-key-named": with_header(good, kid=None),
        "number-as-key": with_header(good, kid=256),
        "one-part-more": good.replace(".", "..", 1),
        "critical": issuer.token(headers={"crit": ["exp"]}),
        "detached": issuer.token(headers={"b64": True, "crit": ["b64"]}),
        "not-encoded": not_encoded(issuer),
        "kind": issuer.token(headers={"typ": "secevent+jwt"}),
        "key-of-its-own": own_key(),
        "encrypted": f"{encoded({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.a.b.c.d",
        "garbage": "a.b.c",
        "empty": "",
        "long": good + "A" * 8192,
        "not-ascii": f"{header}.{claims}.é",
        "nested": f"{encoded(['x'])}.{claims}.{signature}",
    }
    for name, token in forged.items():
        with pytest.raises(UnauthenticatedError) as caught:
            await caller_of(issuer, token)
        assert str(caught.value) == str(unauthenticated()), name
    assert (await caller_of(issuer, good)).scopes


def hs256(secret: bytes, claims: str, key_id: str) -> str:
    """Signed with the public key as if it were a shared secret (RFC 8725 section 2.1)."""
    import hashlib  # noqa: PLC0415 - here alone is a signature made by hand
    import hmac  # noqa: PLC0415

    signed = f"{encoded({'alg': 'HS256', 'kid': key_id})}.{claims}"
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def not_encoded(issuer: Issuer) -> str:
    """What is signed is not what the token shows (RFC 7797): it must be had from elsewhere."""
    algorithm, key = issuer.keys["ES256"]
    claims = base64.urlsafe_b64decode(issuer.token().split(".")[1] + "==")
    return jwt.api_jws.encode(
        claims, key, algorithm, {"kid": "ES256", "b64": False}, is_payload_detached=True
    )


def own_key() -> str:
    """Signed by a key that the token itself brings along."""
    foreign = Issuer()
    foreign.keys["ES256"] = ("ES256", ec.generate_private_key(ec.SECP256R1()))
    return foreign.token(headers={"jwk": foreign.jwk("ES256"), "jku": "https://evil.example.org"})


async def test_token_without_key_id_uses_the_only_key_of_its_type(issuer: Issuer) -> None:
    token = issuer.token("EdDSA", headers={"kid": None})
    assert (await caller_of(issuer, token)).tenant_id == "acme"
    two = Keys(
        parse_key_set(
            json.dumps(
                {"keys": [issuer.jwk("EdDSA"), issuer.jwk("EdDSA", kid="another")]}
            ).encode(),
            "keys.json",
        )
    )
    with pytest.raises(UnauthenticatedError):
        await Tokens(RULES, two).caller_of(token)


async def test_unknown_key_id_causes_one_more_fetch(issuer: Issuer) -> None:
    old = parse_key_set(issuer.key_set("RS256"), "keys.json")
    keys = Keys(old, newer=parse_key_set(issuer.key_set("RS256", "ES256"), "keys.json"))
    tokens = Tokens(RULES, keys)
    assert (await tokens.caller_of(issuer.token("RS256"))).scopes
    assert keys.renewals == 0
    assert (await tokens.caller_of(issuer.token("ES256"))).scopes
    assert keys.renewals == 1


async def test_call_without_any_keys_fails_as_unavailable(issuer: Issuer) -> None:
    with pytest.raises(UnavailableError) as caught:
        await Tokens(RULES, Keys(None)).caller_of(issuer.token())
    assert caught.value.reason == "ISSUER_UNAVAILABLE"
    assert caught.value.retry_after_s
    first = Keys(None, newer=all_keys(issuer).keys)
    assert (await Tokens(RULES, first).caller_of(issuer.token())).scopes


async def test_token_is_verified_once_until_it_expires_or_the_keys_change(issuer: Issuer) -> None:
    ends_s = int(time.time()) + 600
    keys, now_s = all_keys(issuer), [time.time()]
    tokens, token = Tokens(RULES, keys, unix_s=lambda: now_s[0]), issuer.token(exp=ends_s)
    first = await tokens.caller_of(token)
    assert await tokens.caller_of(token) is first
    keys.keys = parse_key_set(issuer.key_set("RS256"), "keys.json")
    with pytest.raises(UnauthenticatedError):
        await tokens.caller_of(token)
    keys.keys = parse_key_set(issuer.key_set("ES256"), "keys.json")
    second = await tokens.caller_of(token)
    assert second is not first
    now_s[0] = ends_s + 29
    assert await tokens.caller_of(token) is second
    now_s[0] = ends_s + 31
    assert await tokens.caller_of(token) is not second, "it is judged anew, by PyJWT's own clock"


async def test_number_of_cached_tokens_is_bounded(issuer: Issuer) -> None:
    tokens = Tokens(RULES, all_keys(issuer), max_remembered=3)
    kept, forgotten = issuer.token(jti="kept"), issuer.token(jti="forgotten")
    first, second = await tokens.caller_of(kept), await tokens.caller_of(forgotten)
    assert await tokens.caller_of(issuer.token(jti="3")) is not first
    assert await tokens.caller_of(kept) is first, "the cache holds three"
    assert await tokens.caller_of(issuer.token(jti="4")) is not first
    assert await tokens.caller_of(kept) is first, "what is used stays"
    assert await tokens.caller_of(forgotten) is not second


async def test_number_of_calls_that_wait_for_newer_keys_is_bounded(issuer: Issuer) -> None:
    """Any caller can send an unknown key id, and the issuer may be slow."""
    may_answer = asyncio.Event()

    class Slow(Keys):
        async def renew(self) -> None:
            await super().renew()
            await may_answer.wait()

    keys = Slow(parse_key_set(issuer.key_set("RS256"), "keys.json"))
    tokens = Tokens(RULES, keys, max_remembered=3)
    waiting = [asyncio.create_task(tokens.caller_of(issuer.token("ES256"))) for _ in range(3)]
    await until(lambda: keys.renewals == 3, "all wait")
    with pytest.raises(UnavailableError):
        await tokens.caller_of(issuer.token("ES256"))
    may_answer.set()
    for task in waiting:
        with pytest.raises(UnauthenticatedError):
            await task
    with pytest.raises(UnauthenticatedError):
        await tokens.caller_of(issuer.token("ES256"))
