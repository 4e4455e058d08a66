"""An attempt from the signature to the outcome, against real receivers."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import Webhook

from hookline_service.domain.attempt import AttemptOutcome, Outcome, Verdict
from hookline_service.domain.subscription import HttpTarget, SignatureScheme
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.sender import EXCERPT_BYTES, WebhookSender, prepare_target
from hookline_service.targets.http.signature import Signer, generate_secret
from hookline_service.targets.payload import Payload
from tests.targets.http.conftest import (
    BODY,
    SECRET,
    TIMESTAMP_S,
    WEBHOOK_ID,
    MakePost,
    Post,
    always,
)
from tests.targets.http.receiver import OK, Connected, Receiver, answer, answering


def verify_v1(secret: str, headers: dict[str, str], body: bytes) -> None:
    """Verify with the reference library of the standard."""
    signed_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), tz=UTC)
    signature = Webhook(secret).sign(headers["webhook-id"], signed_at, body.decode())
    assert signature in headers["webhook-signature"].split(" ")


async def test_request_has_the_expected_line_headers_and_body(post: Post) -> None:
    async with Receiver(answering(OK)) as receiver:
        url = receiver.url("/a/../b%2f//c?x=[1]&y=%20")
        outcome = await post(url, headers={"X-Token": "s3cret"})
    assert outcome.kind is AttemptOutcome.ACCEPTED
    assert (outcome.http_status, outcome.url, outcome.remote_address) == (200, url, "127.0.0.1")
    assert (outcome.error, outcome.excerpt) == ("", b"")
    assert outcome.latency_us > 0
    [request] = receiver.requests
    assert request.request_line == b"POST /a/../b%2f//c?x=[1]&y=%20 HTTP/1.1"
    assert request.body == BODY
    headers = request.headers
    signature = headers.pop("webhook-signature")
    assert headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "user-agent": "hookline/1.2.3",
        "accept": "*/*",
        "accept-encoding": "identity",
        "x-token": "s3cret",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "webhook-id": WEBHOOK_ID,
        "webhook-timestamp": str(TIMESTAMP_S),
    }
    assert signature.startswith("v1,")


async def test_reference_library_verifies_the_signature_of_each_live_secret(post: Post) -> None:
    new, old = SECRET, generate_secret(SignatureScheme.HMAC_SHA256)
    async with Receiver(answering(OK)) as receiver:
        await post(receiver.url(), secrets=[new, old])
    [request] = receiver.requests
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        verify_v1(secret.text, request.headers, request.body)


async def test_public_key_verifies_the_ed25519_signature(post: Post) -> None:
    secret = generate_secret(SignatureScheme.ED25519)
    async with Receiver(answering(OK)) as receiver:
        await post(receiver.url(), secrets=[secret])
    [request] = receiver.requests
    scheme, _, signature = request.headers["webhook-signature"].partition(",")
    public = base64.b64decode(secret.public_key.removeprefix("whpk_"))
    content = f"{WEBHOOK_ID}.{TIMESTAMP_S}.".encode() + BODY
    Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature), content)
    assert scheme == "v1a"


async def test_extra_headers_are_sent_unchanged(post: Post) -> None:
    traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Receiver(answering(OK)) as receiver:
        await post(receiver.url(), extra_headers=[(b"traceparent", traceparent)])
        await post(receiver.url())
    first, second = receiver.requests
    assert first.headers["traceparent"] == traceparent.decode()
    assert "traceparent" not in second.headers


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
async def test_2xx_is_accepted(post: Post, status: int) -> None:
    async with Receiver(answering(answer(f"{status} Fine"))) as receiver:
        outcome = await post(receiver.url())
    assert (outcome.kind, outcome.http_status) == (AttemptOutcome.ACCEPTED, status)


@pytest.mark.parametrize(
    "status", [300, 304, 400, 401, 404, 408, 409, 410, 429, 500, 502, 503, 504, 600, 999]
)
async def test_status_other_than_2xx_is_an_http_error(post: Post, status: int) -> None:
    async with Receiver(answering(answer(f"{status} No"))) as receiver:
        outcome = await post(receiver.url())
    assert (outcome.kind, outcome.http_status) == (AttemptOutcome.HTTP_ERROR, status)
    assert outcome.error.startswith(f"the target answered {status}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(post: Post, status: int) -> None:
    async with (
        Receiver(answering(OK)) as elsewhere,
        Receiver(
            answering(answer(f"{status} Go", b"", f"location: {elsewhere.url()}"))
        ) as receiver,
    ):
        outcome = await post(receiver.url())
    assert (outcome.kind, outcome.http_status) == (AttemptOutcome.HTTP_ERROR, status)
    assert elsewhere.connection_count == 0


@pytest.mark.parametrize(
    "value, expected",
    [
        ("120", 120.0),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("9" * 60, 86_400.0),
        ("9" * 5_000, None),
        ("1.5", None),
        ("-1", None),
        ("soon", None),
        ("\xb2", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("Fri, 99 Foo 0000 99:99:99 GMT", None),
    ],
)
async def test_valid_retry_after_is_applied_and_invalid_is_ignored(
    make_post: MakePost, value: str, expected: float | None
) -> None:
    async with Receiver(answering(answer("503 No", b"", f"Retry-After: {value}"))) as receiver:
        outcome = await make_post(unix_s=60.0).outcome(receiver.url())
    record = outcome.record
    assert (record.kind, record.http_status) == (AttemptOutcome.HTTP_ERROR, 503)
    assert outcome.retry_after_s == expected


async def test_excerpt_of_an_http_error_keeps_its_bytes(post: Post) -> None:
    body = b"\x00\xff\xfe no text " + b"x" * 5_000
    async with Receiver(answering(answer("500 No", body))) as receiver:
        outcome = await post(receiver.url())
    assert outcome.excerpt == body[:EXCERPT_BYTES]


async def test_compressed_response_is_not_decoded(post: Post) -> None:
    body = gzip.compress(b"0" * 1_000_000, mtime=0)
    answers = answering(answer("500 No", body, "content-encoding: gzip"))
    async with Receiver(answers) as receiver:
        outcome = await post(receiver.url())
    assert outcome.excerpt == body[:EXCERPT_BYTES]


async def test_no_request_is_sent_without_permission_of_may_send(post: Post) -> None:
    async def script(connected: Connected) -> None:
        received.append(await connected.reader.read())

    received: list[bytes] = []
    async with Receiver(script) as receiver:
        outcome = await post(receiver.url(), may_send=lambda: False)
        await post.transport.aclose()
    assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
    assert b"".join(received) == b""


async def test_may_send_is_checked_after_connecting(post: Post) -> None:
    asked_at: list[int] = []

    def may_send() -> bool:
        asked_at.append(post.transport.connection_count)
        return True

    async with Receiver(answering(OK)) as receiver:
        await post(receiver.url(), may_send=may_send)
        await post(receiver.url(), may_send=may_send)
    assert asked_at == [1, 1]


async def test_cancelled_attempt_closes_its_connection(post: Post) -> None:
    has_request = asyncio.Event()

    async def script(connected: Connected) -> None:
        await connected.read_request()
        has_request.set()
        await connected.wait_closed_by_peer()

    async with Receiver(script) as receiver:
        attempt = asyncio.create_task(post(receiver.url(), timeout_s=3_600))
        await has_request.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await receiver.until_left()


class TestFailover:
    """The next URL is tried only if no byte can have reached the one before."""

    async def test_refused_connection_fails_over(self, post: Post, closed_port: int) -> None:
        async with Receiver(answering(OK)) as receiver:
            dead = f"http://127.0.0.1:{closed_port}/"
            outcome = await post(dead, failover_urls=[dead, receiver.url("/second")])
        assert outcome.kind is AttemptOutcome.ACCEPTED
        assert outcome.url == receiver.url("/second")

    async def test_silent_address_fails_over_before_the_deadline(
        self, post: Post, silent_port: int
    ) -> None:
        async with Receiver(answering(OK)) as receiver:
            outcome = await post(
                f"http://127.0.0.1:{silent_port}/", failover_urls=[receiver.url()], timeout_s=2.0
            )
        assert outcome.kind is AttemptOutcome.ACCEPTED

    async def test_failure_of_all_urls_has_the_outcome_of_the_last(
        self, post: Post, closed_port: int
    ) -> None:
        dead = f"http://127.0.0.1:{closed_port}/"
        outcome = await post(dead, failover_urls=[f"{dead}last"])
        assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
        assert outcome.url == f"{dead}last"
        assert outcome.error == "the connection was refused"

    async def test_response_or_broken_exchange_does_not_fail_over(self, post: Post) -> None:
        async def reset(connected: Connected) -> None:
            await connected.read_request()
            connected.reset()

        async with Receiver(answering(OK)) as second:
            for script in (answering(answer("503 No")), reset):
                async with Receiver(script) as first:
                    outcome = await post(first.url(), failover_urls=[second.url()])
                    assert outcome.url == first.url()
        assert second.connection_count == 0

    async def test_blocked_address_does_not_fail_over(self, make_post: MakePost) -> None:
        post = make_post(names={"inside.test": ["10.0.0.1"]})
        async with Receiver(answering(OK)) as second:
            outcome = await post("http://inside.test/", failover_urls=[second.url()])
        assert outcome.kind is AttemptOutcome.ADDRESS_BLOCKED
        assert second.connection_count == 0


class TestAnyTransport:
    """The seam for transports: any httpx transport can be used, and its errors become outcomes."""

    @pytest.mark.parametrize(
        "error, kind",
        [
            (httpx.ConnectTimeout("x"), AttemptOutcome.TIMEOUT),
            (httpx.ReadTimeout("x"), AttemptOutcome.TIMEOUT),
            (httpx.ConnectError("x"), AttemptOutcome.CONNECTION_FAILED),
            (httpx.ReadError("x"), AttemptOutcome.CONNECTION_FAILED),
            (httpx.RemoteProtocolError("x"), AttemptOutcome.PROTOCOL_ERROR),
            (AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "x"), AttemptOutcome.INTERNAL_ERROR),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
    )
    async def test_error_of_a_transport_is_an_outcome(
        self, error: httpx.TransportError, kind: AttemptOutcome
    ) -> None:
        def fail(_: httpx.Request) -> httpx.Response:
            raise error

        outcome = await self.attempt(fail)
        assert outcome.record.kind is kind
        is_ours = kind is AttemptOutcome.INTERNAL_ERROR
        assert outcome.verdict is (Verdict.INTERNAL_ERROR if is_ours else Verdict.RETRYABLE)

    async def test_response_of_a_transport_is_classified(self) -> None:
        def accept(request: httpx.Request) -> httpx.Response:
            assert json.loads(request.content) == json.loads(BODY)
            return httpx.Response(202)

        def refuse(_: httpx.Request) -> httpx.Response:
            return httpx.Response(429, headers={"retry-after": "3"}, content=b"slow down")

        accepted, refused = await self.attempt(accept), await self.attempt(refuse)
        assert accepted.record.kind is AttemptOutcome.ACCEPTED
        assert refused.record.kind is AttemptOutcome.HTTP_ERROR
        assert (refused.retry_after_s, refused.record.excerpt) == (3.0, b"slow down")

    @pytest.mark.parametrize(
        "status, verdict",
        [
            (200, Verdict.ACCEPTED), (299, Verdict.ACCEPTED), (302, Verdict.RETRYABLE),
            (404, Verdict.RETRYABLE), (410, Verdict.GONE), (429, Verdict.THROTTLED),
            (500, Verdict.RETRYABLE), (502, Verdict.THROTTLED), (503, Verdict.THROTTLED),
            (504, Verdict.THROTTLED), (505, Verdict.RETRYABLE),
        ],
    )  # fmt: skip
    async def test_status_decides_the_verdict(self, status: int, verdict: Verdict) -> None:
        outcome = await self.attempt(lambda _: httpx.Response(status))
        assert (outcome.verdict, outcome.record.http_status) == (verdict, status)

    async def attempt(self, handle: Callable[[httpx.Request], httpx.Response]) -> Outcome:
        """Make an attempt through a transport that calls a function."""
        target = prepare_target(
            HttpTarget(url="http://example.test/"), Signer([SECRET]), user_agent="hookline/1"
        )
        sender = WebhookSender(httpx.MockTransport(handle))
        payload = Payload(BODY, b"application/json")
        return await sender.send(target, WEBHOOK_ID, TIMESTAMP_S, payload, always)


async def test_name_is_looked_up_for_the_tenant_of_the_target(make_post: MakePost) -> None:
    class Asked(Resolver):
        tenants: tuple[str, ...] = ()

        async def resolve(self, host: str, tenant_id: str = "") -> tuple[str, ...]:
            self.tenants += (tenant_id,)
            return await super().resolve(host, tenant_id)

    async def lookup(_host: str) -> Sequence[str]:
        return ["192.0.2.1"]

    resolver = Asked(lookup)
    post = make_post(resolver=resolver)
    target = prepare_target(
        HttpTarget(url="http://a.test/"),
        Signer([SECRET]),
        user_agent="hookline/1",
        tenant_id="acme",
    )
    payload = Payload(BODY, b"application/json")
    outcome = await post.sender.send(target, WEBHOOK_ID, TIMESTAMP_S, payload, always)
    assert outcome.record.kind is AttemptOutcome.ADDRESS_BLOCKED
    assert resolver.tenants == ("acme",)


@pytest.mark.parametrize(
    "target",
    [
        HttpTarget(url="http://user@example.test/"),
        HttpTarget(url="http://example.test/", failover_urls=("ftp://example.test/",)),
        HttpTarget(url="http://example.test/", headers={"x": "a\r\nhost: b"}),
        HttpTarget(url="http://example.test/", headers={"Host": "b"}),
    ],
    ids=["userinfo", "failover", "line break", "reserved"],
)
def test_invalid_target_is_never_prepared(target: HttpTarget) -> None:
    with pytest.raises(ValueError, match=r"must|has a value|is reserved"):
        prepare_target(target, Signer([SECRET]), user_agent="hookline/1")


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://example.test/", b"example.test"),
        ("http://EXAMPLE.test:80", b"example.test"),
        ("https://example.test:443/", b"example.test"),
        ("https://example.test:80/", b"example.test:80"),
        ("http://[2001:4860::1]:8080/", b"[2001:4860::1]:8080"),
    ],
)
def test_host_header_omits_the_default_port_of_the_scheme(url: str, host: bytes) -> None:
    prepared = prepare_target(HttpTarget(url=url), Signer([SECRET]), user_agent="hookline/1")
    assert prepared.endpoints[0].headers[0] == (b"host", host)
