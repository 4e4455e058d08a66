"""`HooklineClient` against a real gRPC server that answers as each test says."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from hookline import HooklineClient
from hookline.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from hookline.tls import Tls
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.tenant_service_pb2 import GetTenantRequest
from tests.certificates import Authority
from tests.client.service import Answer, Context, Service, hang, info, refuse


async def test_publish_returns_results_in_order_and_adds_missing_keys(
    service: Service, client: HooklineClient
) -> None:
    events = [Event(type="a.b"), Event(type="a.c", idempotency_key="mine"), Event(type="a.d")]
    results = await client.publish("acme", events)
    assert [result.name for result in results] == [f"tenants/acme/events/evt_{n}" for n in range(3)]
    sent = service.events.requests[0]
    assert [event.type for event in sent.events] == ["a.b", "a.c", "a.d"]
    assert sent.events[1].idempotency_key == "mine"
    keys = {event.idempotency_key for event in sent.events}
    assert len(keys) == 3
    assert all(keys)
    assert [event.idempotency_key for event in events] == ["", "mine", ""]


async def test_publish_accepts_the_full_name_of_a_tenant(
    service: Service, client: HooklineClient
) -> None:
    await client.publish("tenants/acme", [Event(type="a.b")])
    assert service.events.requests[0].tenant == "tenants/acme"


async def test_loopback_targets_do_not_use_a_proxy(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's `http_proxy` is set everywhere; a proxy would also read the token along."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with HooklineClient(service.target, token="hk_x", timeout_s=5) as client:
        await client.publish("acme", [Event(type="a.b")], timeout_s=5)
    assert len(service.events.requests) == 1


async def test_unavailable_is_repeated_with_the_same_keys_after_the_pushback(
    service: Service, client: HooklineClient
) -> None:
    service.events.script = [
        refuse(grpc.StatusCode.UNAVAILABLE, pushback="300"),
        refuse(grpc.StatusCode.UNAVAILABLE),
    ]
    await client.publish("acme", [Event(type="a.b"), Event(type="a.c")])
    first, second, third = service.events.requests
    assert first == second == third
    assert service.events.times[1] - service.events.times[0] >= 0.29


async def test_publish_repeats_overload_after_the_retry_delay(
    service: Service, client: HooklineClient
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(200)
    service.events.script = [refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, info("OVERLOADED"), retry)]
    await client.publish("acme", [Event(type="a.b")])
    assert service.events.times[1] - service.events.times[0] >= 0.19


@pytest.mark.parametrize(
    "answer, kind",
    [
        (refuse(grpc.StatusCode.UNAVAILABLE, pushback="-1"), UnavailableError),
        (refuse(grpc.StatusCode.UNAVAILABLE, pushback="soon"), UnavailableError),
        (refuse(grpc.StatusCode.RESOURCE_EXHAUSTED), ResourceExhaustedError),
        (refuse(grpc.StatusCode.INVALID_ARGUMENT), InvalidArgumentError),
        (refuse(grpc.StatusCode.DATA_LOSS), HooklineError),
    ],
    ids=["forbidden", "garbled", "quota", "invalid", "other"],
)
async def test_permanent_errors_are_raised_without_repetition(
    service: Service, client: HooklineClient, answer: Answer, kind: type[HooklineError]
) -> None:
    service.events.script = [answer]
    with pytest.raises(HooklineError) as caught:
        await client.publish("acme", [Event(type="a.b")])
    assert type(caught.value) is kind
    assert len(service.events.requests) == 1


async def test_a_hanging_try_is_repeated_within_the_deadline(service: Service) -> None:
    service.events.script = [hang]
    async with HooklineClient(service.target, timeout_s=0.3) as client:
        await client.publish("acme", [Event(type="a.b")], timeout_s=20)
    assert service.events.requests[0] == service.events.requests[1]


async def test_publish_gives_up_at_its_deadline(service: Service, client: HooklineClient) -> None:
    service.events.script = [refuse(grpc.StatusCode.UNAVAILABLE, pushback="100")] * 100
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        await client.publish("acme", [Event(type="a.b")], timeout_s=0.5)
    assert time.monotonic() - began < 0.6
    assert 2 <= len(service.events.requests) <= 6


async def test_publish_reconnects_to_a_restarted_service(service: Service) -> None:
    await service.server.stop(0)
    async with HooklineClient(service.target) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.publish("acme", [Event(type="a.b")], timeout_s=0.2)
        assert caught.value.reason == ""
        async with asyncio.TaskGroup() as tasks:
            published = tasks.create_task(client.publish("acme", [Event(type="a.b")]))
            again = Service(port=service.port)
            await again.server.start()
        assert len(published.result()) == 1
    await again.server.stop(0)


async def test_every_call_has_a_deadline(service: Service) -> None:
    async with HooklineClient(service.target, timeout_s=7.0) as client:
        await client.events.PublishEvents(PublishEventsRequest())
        await client.events.PublishEvents(PublishEventsRequest(), timeout=3.0)
    default_s, own_s = service.events.time_left_s
    assert 6 < default_s < 7.5
    assert 2 < own_s < 3.5


async def test_a_call_without_a_response_ends_at_the_deadline(service: Service) -> None:
    service.events.script = [hang]
    async with HooklineClient(service.target, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceededError):
            await client.events.PublishEvents(PublishEventsRequest())


async def test_an_error_contains_the_details_of_the_service(
    service: Service, client: HooklineClient
) -> None:
    faults = error_details_pb2.BadRequest()
    faults.field_violations.add(field="events[0].type", description="is empty", reason="X")
    faults.field_violations.add(field="tenant", description="is none")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    service.events.script = [
        refuse(
            grpc.StatusCode.ALREADY_EXISTS,
            info("IDEMPOTENCY_KEY_REUSED", index="3", name="tenants/acme/events/evt_1"),
            faults,
            retry,
            text="the key is taken",
        )
    ]
    with pytest.raises(AlreadyExistsError) as caught:
        await client.events.PublishEvents(PublishEventsRequest())
    error = caught.value
    assert error.code is grpc.StatusCode.ALREADY_EXISTS
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert error.message == "the key is taken"
    assert error.metadata == {"index": "3", "name": "tenants/acme/events/evt_1"}
    assert [(fault.field, fault.reason) for fault in error.violations] == [
        ("events[0].type", "X"),
        ("tenant", ""),
    ]
    assert error.retry_after_s == 1.5
    assert str(error).splitlines() == [
        "ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED): the key is taken",
        "  events[0].type: is empty",
        "  tenant: is none",
    ]
    assert isinstance(error.__cause__, grpc.aio.AioRpcError)


async def test_the_text_of_an_error_has_no_repetition(
    service: Service, client: HooklineClient
) -> None:
    fault = error_details_pb2.BadRequest()
    fault.field_violations.add(field="tenant", description="is none")
    service.events.script = [
        refuse(
            grpc.StatusCode.INVALID_ARGUMENT, info("FIELD_INVALID"), fault, text="tenant: is none"
        ),
        refuse(grpc.StatusCode.UNAUTHENTICATED, info("UNAUTHENTICATED"), text="not authenticated"),
    ]
    for said in (
        "INVALID_ARGUMENT (FIELD_INVALID): tenant: is none",
        "UNAUTHENTICATED: not authenticated",
    ):
        with pytest.raises(HooklineError) as caught:
            await client.events.PublishEvents(PublishEventsRequest())
        assert str(caught.value) == said


async def test_malformed_details_raise_no_second_error(
    service: Service, client: HooklineClient
) -> None:
    async def answer(context: Context) -> None:
        garbled = (("grpc-status-details-bin", b"\xff\xff\xff"),)
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", garbled)

    service.events.script = [answer]
    with pytest.raises(NotFoundError, match="gone") as caught:
        await client.events.PublishEvents(PublishEventsRequest())
    assert caught.value.reason == ""


async def test_a_missing_method_raises_unimplemented_error(client: HooklineClient) -> None:
    with pytest.raises(UnimplementedError):
        await client.tenants.GetTenant(GetTenantRequest(name="tenants/acme"))


async def test_the_token_goes_with_every_call(service: Service) -> None:
    async with HooklineClient(service.target, token="hk_1_secret") as client:
        await client.events.PublishEvents(PublishEventsRequest(), metadata=(("x-mine", "1"),))
    assert service.events.metadata[0]["authorization"] == "Bearer hk_1_secret"
    assert service.events.metadata[0]["x-mine"] == "1"


@pytest.mark.parametrize("target", ["hookline.example:443", "10.0.0.7:50051", "dns:///localhost:1"])
def test_a_token_is_never_sent_in_plaintext_to_another_machine(target: str) -> None:
    with pytest.raises(ValueError, match="plaintext"):
        HooklineClient(target, token="hk_1_secret", plaintext=True)


async def test_a_token_is_sent_in_plaintext_only_with_two_arguments() -> None:
    async with HooklineClient(
        "10.0.0.7:1", token="hk_1_secret", plaintext=True, token_in_plaintext=True
    ):
        pass


def test_tls_with_plaintext_raises_value_error() -> None:
    with pytest.raises(ValueError, match="plaintext"):
        HooklineClient(plaintext=True, tls=grpc.ssl_channel_credentials())


async def test_tls_uses_the_given_files_and_server_name(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    (cert, key), (server_cert, server_key) = (
        authority.issue("client", "shop.internal"),
        authority.issue("server", "hookline.internal"),
    )
    pair = (server_key.read_bytes(), server_cert.read_bytes())
    secure = Service(grpc.ssl_server_credentials([pair], authority.pem, require_client_auth=True))
    await secure.server.start()
    nameless = Tls(ca_file=authority.file, cert_file=cert, key_file=str(key))
    tls = replace(nameless, server_name="hookline.internal")
    async with HooklineClient(secure.target, tls=tls, token="hk_1_secret") as client:
        await client.publish("acme", [Event(type="a.b")])
    for wrong in (nameless, replace(tls, cert_file=None, key_file=None)):
        async with HooklineClient(secure.target, tls=wrong) as client:
            with pytest.raises(UnavailableError):
                await client.publish("acme", [Event(type="a.b")], timeout_s=0.5)
    await secure.server.stop(0)
    assert len(secure.events.requests) == 1


def test_unusable_files_raise_when_the_client_is_created(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, _ = authority.issue("client", "shop.internal")
    with pytest.raises(ValueError, match="must be set together"):
        HooklineClient(tls=Tls(cert_file=cert))
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        HooklineClient(tls=Tls(ca_file=tmp_path / "none.pem"))
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ValueError, match=r"empty\.pem is not a PEM file"):
        HooklineClient(tls=Tls(ca_file=tmp_path / "empty.pem"))


async def test_a_connection_with_credentials_uses_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    secure = Service(grpc.ssl_server_credentials([pair]))
    await secure.server.start()
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with HooklineClient(secure.target, tls=trusted, token="hk_1_secret") as client:
        await client.publish("acme", [Event(type="a.b")])
    async with HooklineClient(secure.target, plaintext=False) as client:
        with pytest.raises(UnavailableError):
            await client.publish("acme", [Event(type="a.b")], timeout_s=0.5)
    await secure.server.stop(0)
    assert len(secure.events.requests) == 1
