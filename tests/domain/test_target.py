"""The grammar of targets: each invalid URL or header is reported with its field and reason."""

from __future__ import annotations

import ipaddress
import string

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.errors import Reason
from hookline_service.domain.target import (
    MAX_HEADERS,
    MAX_HEADERS_BYTES,
    MAX_URL_LENGTH,
    TargetUrl,
    TargetUrlError,
    check_headers,
    check_url,
    check_urls,
    parse_target_url,
)

BAD_URLS = {
    # Other schemes, or none.
    "hooks.example": "must be absolute",
    "//hooks.example/x": "must be absolute",
    "/x": "must be absolute",
    "hooks.example:443/x": "scheme https or http",
    "localhost:8080": "scheme https or http",
    "ftp://hooks.example/": "scheme https or http, not ftp",
    "file:///etc/passwd": "scheme https or http",
    "gopher://hooks.example/": "scheme https or http",
    "unix:/run/x.sock": "scheme https or http",
    "javascript:alert(1)": "scheme https or http",
    "data:,x": "scheme https or http",
    "ws://hooks.example/": "scheme https or http",
    "http+unix://x/": "scheme https or http",
    "httpx://hooks.example/": "scheme https or http",
    "http:hooks.example": "must have // after http:",
    "http:/hooks.example": "must have // after http:",
    "https:": "must have // after https:",
    # No host.
    "http://": "must have a host",
    "http:///x": "must have a host",
    "http:////hooks.example": "must have a host",
    "http://:80/": "must have a host",
    "http://?x": "must have a host",
    # Userinfo: what stands before the @ looks like the host to a reader.
    "http://user@hooks.example/": "user or password",
    "http://user:secret@hooks.example/": "user or password",
    "http://@hooks.example/": "user or password",
    "http://hooks.example@127.0.0.1/": "user or password",
    "http://hooks.example:80@evil.example/": "user or password",
    # Characters.
    "http://hooks.example/a b": "control characters",
    " http://hooks.example/": "control characters",
    "http://hooks.example/ ": "control characters",
    "http://hooks.example/\t": "control characters",
    "http://hooks.example/\r\nhost: x": "control characters",
    "http://hooks.example/\n": "control characters",
    "http://hooks.example/\x00": "control characters",
    "http://ho\tst/": "control characters",
    "ht\ntp://hooks.example/": "control characters",
    "http://hooks.example/\x7f": "must be ASCII",
    "http://hooks.example/\x85": "must be ASCII",
    "http://bücher.example/": "xn-- form",
    "http://hooks.example/ü": "must be ASCII",
    "http://hooks。example/": "must be ASCII",
    "http://①②⑦.0.0.1/": "must be ASCII",
    "http://hooks.example\u200b/": "must be ASCII",
    "http://hooks.example\\@evil.example/": "backslash|user or password",
    "http:\\\\hooks.example\\x": "backslash",
    "http://hooks.example/a\\b": "backslash",
    "http://hooks.example/#top": "fragment",
    "http://hooks.example/#": "fragment",
    "http://hooks.example#@evil.example/": "fragment",
    'http://hooks.example/"': "must percent-encode",
    "http://hooks.example/<x>": "must percent-encode",
    "http://hooks.example/{id}": "must percent-encode",
    "http://hooks.example/a|b": "must percent-encode",
    "http://hooks.example/^": "must percent-encode",
    "http://hooks.example/`": "must percent-encode",
    "http://hooks.example/%": "two hexadecimal digits",
    "http://hooks.example/%2": "two hexadecimal digits",
    "http://hooks.example/%zz": "two hexadecimal digits",
    "http://hooks.example/?%u0041": "two hexadecimal digits",
    # Hosts.
    "http://%6cocalhost/": "percent-encoded host",
    "http://127.0.0.1%2f@x/": "user or password",
    "http://127%2e0.0.1/": "percent-encoded host",
    "http://hooks.example./": "ends in a dot",
    "http://127.0.0.1./": "ends in a dot",
    "http://./": "ends in a dot",
    "http://hooks..example/": "letters, digits, hyphens and dots",
    "http://.hooks.example/": "letters, digits, hyphens and dots",
    "http://-hooks.example/": "letters, digits, hyphens and dots",
    "http://hooks-.example/": "letters, digits, hyphens and dots",
    "http://hooks!.example/": "letters, digits, hyphens and dots",
    "http://hooks,example/": "letters, digits, hyphens and dots",
    "http://*.example/": "letters, digits, hyphens and dots",
    "http://hooks.example;x/": "letters, digits, hyphens and dots",
    "http://hooks.example&x/": "letters, digits, hyphens and dots",
    "http://$(id).example/": "letters, digits, hyphens and dots",
    f"http://{'a' * 64}.example/": "longer than 63",
    f"http://{'.'.join(['a' * 50] * 6)}/": "longer than 253",
    # Addresses in the spellings that resolvers take and readers do not.
    "http://2130706433/": "four decimal numbers",
    "http://0x7f000001/": "four decimal numbers",
    "http://0X7F000001/": "four decimal numbers",
    "http://017700000001/": "four decimal numbers",
    "http://0/": "four decimal numbers",
    "http://0x/": "four decimal numbers",
    "http://1/": "four decimal numbers",
    "http://127.1/": "four decimal numbers",
    "http://127.0.1/": "four decimal numbers",
    "http://0x7f.1/": "four decimal numbers",
    "http://0x7f.0.0.0x1/": "four decimal numbers",
    "http://0177.0.0.1/": "four decimal numbers",
    "http://127.0.0.01/": "four decimal numbers",
    "http://127.0.0.0x1/": "four decimal numbers",
    "http://127.0.0.256/": "four decimal numbers",
    "http://127.0.0.1.1/": "four decimal numbers",
    "http://1.2.3.4.5/": "four decimal numbers",
    "http://999999999999/": "four decimal numbers",
    "http://hooks.1/": "four decimal numbers",
    "http://hooks.0x1/": "four decimal numbers",
    "http://[::1/": "brackets do not match",
    "http://[::1]x/": "brackets do not match",
    "http://[::1]]/": "brackets do not match",
    "http://::1/": "in brackets",
    "http://::1]/": "in brackets",
    "http://[]/": "not an IPv6 address",
    "http://[127.0.0.1]/": "not an IPv6 address",
    "http://[hooks.example]/": "not an IPv6 address",
    "http://[v1.x]/": "not an IPv6 address",
    "http://[1::2::3]/": "not an IPv6 address",
    "http://[12345::]/": "not an IPv6 address",
    "http://[fe80::1%25eth0]/": "zone id",
    "http://[fe80::1%eth0]/": "zone id",
    "http://[fe80::1%]/": "zone id",
    # Ports.
    "http://hooks.example:0/": "port between 1 and 65535",
    "http://hooks.example:/": "port between 1 and 65535",
    "http://hooks.example:65536/": "port between 1 and 65535",
    "http://hooks.example:99999999999999999999/": "port between 1 and 65535",
    "http://hooks.example:-1/": "port between 1 and 65535",
    "http://hooks.example:+80/": "port between 1 and 65535",
    "http://hooks.example:080/": "port between 1 and 65535",
    "http://hooks.example:0x50/": "port between 1 and 65535",
    "http://hooks.example:http/": "port between 1 and 65535",
    "http://hooks.example:8 0/": "control characters",
    "http://hooks.example:80:80/": "one port",
    "http://[2001:db8::1]:0/": "port between 1 and 65535",
    "http://[2001:db8::1]:/": "port between 1 and 65535",
    # Size.
    "http://hooks.example/" + "x" * MAX_URL_LENGTH: "at most 2048",
}

GOOD_URLS = {
    "https://hooks.example": TargetUrl("https", "hooks.example", 443, "/"),
    "http://hooks.example/": TargetUrl("http", "hooks.example", 80, "/"),
    "HTTPS://Hooks.EXAMPLE/Path": TargetUrl("https", "hooks.example", 443, "/Path"),
    "https://hooks.example?x=1": TargetUrl("https", "hooks.example", 443, "/?x=1"),
    "https://hooks.example:8443/a//b/../c;d?e=f&g[]=h%20i?j/k@l:m": TargetUrl(
        "https", "hooks.example", 8443, "/a//b/../c;d?e=f&g[]=h%20i?j/k@l:m"
    ),
    "http://localhost:8080/": TargetUrl("http", "localhost", 8080, "/"),
    "http://my_service/": TargetUrl("http", "my_service", 80, "/"),
    "http://xn--bcher-kva.example/": TargetUrl("http", "xn--bcher-kva.example", 80, "/"),
    "http://127.0.0.1:65535/": TargetUrl("http", "127.0.0.1", 65535, "/"),
    "http://1.2.3.4.example/": TargetUrl("http", "1.2.3.4.example", 80, "/"),
    "http://0x7f.example/": TargetUrl("http", "0x7f.example", 80, "/"),
    "http://3com/": TargetUrl("http", "3com", 80, "/"),
    "http://[::1]/": TargetUrl("http", "::1", 80, "/"),
    "http://[2001:DB8:0:0::1]:1/": TargetUrl("http", "2001:db8::1", 1, "/"),
    "http://[::ffff:127.0.0.1]/": TargetUrl("http", "::ffff:7f00:1", 80, "/"),
    "http://hooks.example/~!$&'()*+,;=:@": TargetUrl(
        "http", "hooks.example", 80, "/~!$&'()*+,;=:@"
    ),
    "https://hooks.example/" + "x" * (MAX_URL_LENGTH - 22): TargetUrl(
        "https", "hooks.example", 443, "/" + "x" * (MAX_URL_LENGTH - 22)
    ),
}


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda url: f"{url[:40]!a} {len(url)}")
def test_invalid_url_is_refused_with_its_field_and_reason(url: str) -> None:
    [violation] = check_url(url, "target.http.url")
    assert violation.field == "target.http.url"
    assert violation.reason is Reason.TARGET_URL_INVALID
    assert any(reason in violation.description for reason in BAD_URLS[url].split("|")), violation


@pytest.mark.parametrize("url", GOOD_URLS, ids=lambda url: url[:40])
def test_valid_url_is_split_into_its_parts(url: str) -> None:
    assert check_url(url) == []
    assert parse_target_url(url) == GOOD_URLS[url]


def test_empty_url_is_reported_as_missing() -> None:
    [violation] = check_url("")
    assert (violation.field, violation.reason) == ("url", Reason.FIELD_REQUIRED)


def test_http_is_refused_only_if_tls_is_required() -> None:
    assert check_url("http://hooks.example/") == []
    assert check_url("https://hooks.example/", https_only=True) == []
    [violation] = check_url("http://hooks.example/", https_only=True)
    assert "must be an https URL" in violation.description


def test_failover_urls_follow_the_rules_of_the_url() -> None:
    violations = check_urls(
        "http://a.example/", ["http://b.example/", "", "ftp://c.example/"], "target.http."
    )
    fields = [violation.field for violation in violations]
    assert fields == ["target.http.failover_urls[1]", "target.http.failover_urls[2]"]
    [violation] = check_urls("http://a.example/", ["http://b.example/"] * 5)
    assert (violation.field, violation.reason) == ("failover_urls", Reason.LIMIT_EXCEEDED)
    [violation] = check_urls("", ["http://b.example/"] * 4)
    assert violation.field == "url"


def test_default_port_of_the_scheme_is_recognised() -> None:
    for url, is_default in {
        "http://a.example/": True,
        "http://a.example:80/": True,
        "https://a.example:443/": True,
        "https://a.example:80/": False,
    }.items():
        assert parse_target_url(url).is_default_port is is_default


@given(st.text(max_size=60) | st.text(alphabet="htps:/.@[]%\\#?0123456789abx -\t", max_size=40))
def test_any_text_is_a_valid_url_or_refused_with_a_sentence(text: str) -> None:
    for url in (text, f"http://{text}", f"http://{text}/", f"http://hooks.example/{text}"):
        violations = check_url(url)
        assert all(violation.description.isprintable() for violation in violations)
        if not violations:
            assert_other_readers_agree(url, parse_target_url(url))


LABELS = st.text(alphabet=string.ascii_letters + string.digits + "-_.", min_size=1, max_size=30)
PATHS = st.text(alphabet=string.ascii_letters + "/?[]%20.&=;@:!$'()*+,~-_", max_size=30)


@given(host=LABELS | st.ip_addresses().map(str), port=st.integers(0, 70_000), path=PATHS)
def test_other_url_parsers_read_the_host_that_was_checked(host: str, port: int, path: str) -> None:
    host = f"[{host}]" if ":" in host else host
    for url in (f"https://{host}:{port}/{path}", f"http://{host}/{path}"):
        try:
            target = parse_target_url(url)
        except TargetUrlError:
            continue
        assert_other_readers_agree(url, target)
        assert target.request_target == f"/{path}"


def assert_other_readers_agree(url: str, target: TargetUrl) -> None:
    """Another library reads the same host, and the request line cannot be forged."""
    other = httpx.URL(url)
    assert (other.scheme, other.port or 0) in {
        (target.scheme, target.port),
        (target.scheme, 0 if target.is_default_port else target.port),
    }
    if ":" in target.host:
        assert ipaddress.ip_address(other.host) == ipaddress.ip_address(target.host)
    else:
        assert other.raw_host.decode("ascii") == target.host
    assert target.request_target.isascii()
    assert target.request_target.isprintable()
    assert " " not in target.request_target
    assert target.request_target.startswith("/")


GOOD_HEADERS = {
    "Authorization": "Bearer abc.def",
    "x-api-key": "k",
    "X_Odd!#$%&'*+.^`|~": "1",
    "x-empty": "",
    "x-spaces": "a  b",
    "accept": "application/json",
    "cookie": "a=b",
    "x-webhook-id": "mine",
}

BAD_HEADERS = {
    ("", "x"): "not a header name",
    ("a b", "x"): "not a header name",
    ("a:b", "x"): "not a header name",
    (":authority", "x"): "not a header name",
    ("a\r\nb", "x"): "not a header name",
    ("a\x00", "x"): "not a header name",
    ("ä", "x"): "not a header name",
    ("a(b)", "x"): "not a header name",
    ("x\n", "y"): "not a header name",
    ("x", "a\r\nhost: b"): "printable ASCII",
    ("x", "a\nb"): "printable ASCII",
    ("x", "a\rb"): "printable ASCII",
    ("x", "a\x00b"): "printable ASCII",
    ("x", "a\tb"): "printable ASCII",
    ("x", "a\x7fb"): "printable ASCII",
    ("x", "ä"): "printable ASCII",
    ("x", "\ud800"): "printable ASCII",
    ("x", "a\n"): "printable ASCII",
    ("x", " a"): "begins or ends with a space",
    ("x", "a "): "begins or ends with a space",
}

RESERVED = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "proxy-authorization",
    "proxy-connection",
    "proxy-anything",
    "content-type",
    "content-encoding",
    "content-range",
    "accept-encoding",
    "user-agent",
    "expect",
    "traceparent",
    "tracestate",
    "baggage",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "webhook-anything",
    "hookline-x",
    "x-hookline-x",
]


def test_valid_headers_are_accepted() -> None:
    assert check_headers(GOOD_HEADERS, {"x-secret": "s3cret"}) == []


@pytest.mark.parametrize("name, value", BAD_HEADERS, ids=ascii)
def test_invalid_header_is_refused(name: str, value: str) -> None:
    for headers, secret_headers, field in (
        ({name: value}, {}, "headers"),
        ({}, {name: value}, "secret_headers"),
    ):
        [violation] = check_headers(headers, secret_headers, "target.http.")
        assert violation.field.startswith(f"target.http.{field}[")
        assert violation.field.isprintable()
        assert violation.reason is Reason.HEADER_INVALID
        assert BAD_HEADERS[name, value] in violation.description


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_header_is_refused_in_any_case(name: str) -> None:
    for spelled in (name, name.upper(), name.title()):
        [violation] = check_headers({spelled: "x"}, {})
        assert "is reserved" in violation.description


def test_header_names_that_differ_only_in_case_are_duplicates() -> None:
    [violation] = check_headers({"X-One": "1", "x-one": "2"}, {})
    assert (violation.field, "twice" in violation.description) == ("headers['x-one']", True)
    [violation] = check_headers({"X-One": "1"}, {"x-ONE": "2"})
    assert violation.field == "secret_headers['x-ONE']"


def test_all_problems_are_reported_together_without_values() -> None:
    violations = check_headers({"a b": "hidden\n", "host": "hidden"}, {"x": "hidden\r"})
    assert [violation.field for violation in violations] == [
        "headers['a b']",
        "headers['a b']",
        "headers['host']",
        "secret_headers['x']",
    ]
    assert not any("hidden" in violation.description for violation in violations)


def test_headers_are_limited_in_number_and_size_together() -> None:
    many = {f"x-{number}": "" for number in range(MAX_HEADERS)}
    assert check_headers(many, {}) == []
    [violation] = check_headers(many, {"x-secret": ""})
    assert violation.reason is Reason.LIMIT_EXCEEDED
    full = {"x": "v" * (MAX_HEADERS_BYTES - 5)}
    assert check_headers(full, {}) == []
    [violation] = check_headers(full, {"y": ""})
    assert violation.reason is Reason.LIMIT_EXCEEDED
