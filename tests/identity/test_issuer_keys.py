"""Fetched issuer keys: times of the fetches, rejected responses, and use during an outage."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hookline_service.identity.files import SourceError
from hookline_service.identity.issuer_keys import FetchedKeys, fetch, is_fit_url
from tests.certificates import Authority
from tests.identity.issuer import Issuer


class Publisher:
    """A real server of a JWK Set; a test says what it answers."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.status = 200
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.is_open = threading.Event()
        self.is_open.set()
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                publisher.headers.append({k.lower(): v for k, v in self.headers.items()})
                publisher.is_open.wait(20)
                self.send_response(publisher.status)
                self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(publisher.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys?tenant=a"

    @contextmanager
    def serving(self) -> Iterator[Publisher]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.is_open.set()
            self.server.shutdown()
            thread.join()
            self.server.server_close()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def publisher(issuer: Issuer) -> Iterator[Publisher]:
    with Publisher(issuer.key_set()).serving() as publisher:
        yield publisher


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_keys_are_fetched_at_once_and_then_periodically(publisher: Publisher, clock: Clock) -> None:
    keys = FetchedKeys(publisher.url, 300, monotonic_s=clock.monotonic)
    assert keys.current() is None
    assert keys.state().summary.startswith("no keys from http://127.0.0.1")
    for elapsed_s, asked in ((0, 1), (299, 1), (2, 2), (1, 2)):
        clock.now_s += elapsed_s
        keys.look()
        assert len(publisher.asked) == asked
    assert publisher.asked[0] == "/keys?tenant=a"
    assert publisher.headers[0]["accept-encoding"] == "identity"
    assert keys.current() is not None
    assert keys.state().summary == f"4 keys from {publisher.url}"
    assert keys.state().problem == ""


def test_last_keys_are_used_for_a_day_while_the_issuer_is_unreachable(
    publisher: Publisher, clock: Clock
) -> None:
    keys = FetchedKeys(publisher.url, 300, monotonic_s=clock.monotonic)
    keys.look()
    before = keys.current()
    publisher.status = 503
    with capture_logs() as logs:
        for _ in range(3):
            clock.now_s += 301
            keys.look()
    assert [line["event"] for line in logs] == ["source_rejected"]
    assert keys.current() is before
    assert "answered 503" in keys.state().problem
    clock.now_s += 24 * 3_600
    keys.look()
    assert keys.current() is None
    publisher.status = 200
    clock.now_s += 10
    keys.look()
    assert keys.current() == before
    assert keys.state().problem == ""


def test_failed_fetch_is_retried_soon(publisher: Publisher, clock: Clock) -> None:
    publisher.status = 500
    keys = FetchedKeys(publisher.url, 300, monotonic_s=clock.monotonic)
    for elapsed_s, asked in ((0, 1), (9, 1), (1, 2)):
        clock.now_s += elapsed_s
        keys.look()
        assert len(publisher.asked) == asked


def test_only_different_keys_are_a_change(
    publisher: Publisher, clock: Clock, issuer: Issuer
) -> None:
    keys = FetchedKeys(publisher.url, 300, monotonic_s=clock.monotonic)
    keys.look()
    before = keys.current()
    clock.now_s += 301
    keys.look()
    assert keys.current() is before
    publisher.content = issuer.key_set("ES256")
    clock.now_s += 301
    keys.look()
    after = keys.current()
    assert after is not None
    assert set(after.keys) == {("ES256", "ES256")}


async def test_concurrent_calls_share_one_fetch_and_unknown_keys_cause_no_more(
    publisher: Publisher, clock: Clock
) -> None:
    keys = FetchedKeys(publisher.url, 300, monotonic_s=clock.monotonic)
    publisher.is_open.clear()
    waiting = [asyncio.create_task(keys.renew()) for _ in range(10)]
    while not publisher.asked:
        await asyncio.wait(waiting, timeout=0.01)
    assert not any(task.done() for task in waiting)
    publisher.is_open.set()
    await asyncio.gather(*waiting)
    assert keys.current() is not None
    clock.now_s += 29
    await keys.renew()
    assert len(publisher.asked) == 1
    clock.now_s += 2
    await keys.renew()
    assert len(publisher.asked) == 2


async def test_cancelled_caller_does_not_cancel_the_shared_fetch(publisher: Publisher) -> None:
    keys = FetchedKeys(publisher.url, 300)
    publisher.is_open.clear()
    impatient, patient = (asyncio.create_task(keys.renew()) for _ in range(2))
    while not publisher.asked:
        await asyncio.wait([impatient], timeout=0.01)
    impatient.cancel()
    publisher.is_open.set()
    await patient
    assert keys.current() is not None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"status": 302}, "answered 302"),
        ({"status": 404}, "answered 404"),
        ({"content": bytes(256 * 1024 + 1)}, "larger than 262,144 bytes"),
    ],
    ids=["redirect", "missing", "large"],
)
def test_invalid_response_of_the_issuer_is_reported(
    publisher: Publisher, changes: dict[str, Any], message: str
) -> None:
    vars(publisher).update(changes)
    with pytest.raises(SourceError, match=message):
        fetch(publisher.url)
    assert len(publisher.asked) == 1, "nothing is followed"


def test_issuer_that_never_answers_is_disconnected(publisher: Publisher) -> None:
    publisher.is_open.clear()
    with pytest.raises(SourceError, match="cannot be fetched"):
        fetch(publisher.url, timeout_s=0.05)


def test_issuer_that_answers_in_single_bytes_is_disconnected() -> None:
    gone = threading.Event()

    class Trickling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while not gone.wait(0.01):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            except OSError:
                gone.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Trickling) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(SourceError, match=r"was not there within 0\.2 s"):
                fetch(f"http://127.0.0.1:{server.server_port}/", timeout_s=0.2)
        finally:
            gone.set()
            server.shutdown()
            thread.join()


def test_proxy_of_the_environment_is_not_used_for_keys(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(publisher.url) == publisher.content


def test_certificate_of_the_key_url_is_verified(issuer: Issuer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("issuer", "localhost")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    publisher = Publisher(issuer.key_set())
    publisher.server.socket = server.wrap_socket(publisher.server.socket, server_side=True)
    with publisher.serving():
        url = f"https://localhost:{publisher.server.server_port}/keys"
        trusting = ssl.create_default_context(cafile=authority.file)
        assert fetch(url, trusting) == publisher.content
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url)
        with pytest.raises(SourceError, match="cannot be fetched"):
            fetch(url.replace("localhost", "127.0.0.1"), trusting)


@pytest.mark.parametrize(
    "url, is_fit",
    [
        ("https://login.example.org/keys", True),
        ("https://login.example.org:8443/keys?x=1", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://[::1]/keys", True),
        ("http://localhost/keys", True),
        ("http://login.example.org/keys", False),
        ("http://10.0.0.1/keys", False),
        ("http://localhost.evil.example.org/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/keys.json", False),
        ("https://", False),
        ("https://user:secret@login.example.org/", False),
        ("https://login.example.org/#keys", False),
        ("https://login.example.org/a b", False),
        ("https://login.example.org:99999/", False),
        ("https://löwe.example.org/", False),
    ],
)
def test_key_url_must_be_https_or_loopback(url: str, is_fit: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert is_fit_url(url) is is_fit
