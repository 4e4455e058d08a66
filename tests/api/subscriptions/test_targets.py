"""Refused targets: URLs, addresses and headers, each with its field and reason."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.control import Control, controlling, http, orders, refused_both_ways
from tests.api.refusals import refusal


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    """The control plane with an egress policy that allows only public addresses."""
    async with controlling(database_url, allow=()) as control:
        await control.create()
        yield control


BAD_URLS = {
    "relative": "/hook",
    "no scheme": "example.com/hook",
    "scheme relative": "//example.com/",
    "another scheme": "ftp://example.com/",
    "file": "file:///etc/passwd",
    "javascript": "javascript:alert(1)",
    "unix socket": "http+unix://%2Fvar%2Frun/x",
    "no host": "https://",
    "no host but a path": "https:///hook",
    "no host but a port": "https://:443/",
    "one slash": "https:/example.com/",
    "no slashes": "https:example.com",
    "user": "https://user@example.com/",
    "user and password": "https://user:pass@example.com/",
    "empty userinfo": "https://@example.com/",
    "hidden host": "https://example.com@127.0.0.1/",
    "backslash": "https://example.com\\@127.0.0.1/",
    "fragment": "https://example.com/#x",
    "empty fragment": "https://example.com/#",
    "port 0": "https://example.com:0/",
    "empty port": "https://example.com:/",
    "port too large": "https://example.com:65536/",
    "port that is none": "https://example.com:80a/",
    "negative port": "https://example.com:-1/",
    "port with a sign": "https://example.com:+80/",
    "two ports": "https://example.com:80:80/",
    "decimal address": "http://2130706433/",
    "hexadecimal address": "http://0x7f000001/",
    "mixed address": "http://0x7f.1/",
    "short address": "http://127.1/",
    "octal address": "http://0177.0.0.1/",
    "leading zeros": "http://127.000.000.001/",
    "address with a dot behind": "http://127.0.0.1./",
    "five numbers": "http://1.2.3.4.5/",
    "octet too large": "http://256.1.1.1/",
    "zone id": "http://[fe80::1%25eth0]/",
    "bare zone id": "http://[fe80::1%eth0]/",
    "open bracket": "http://[::1/",
    "bare IPv6": "http://::1/",
    "brackets around a name": "http://[example.com]/",
    "future address": "http://[v1.fe80]/",
    "space": "https://example.com/a b",
    "leading space": " https://example.com/",
    "trailing newline": "https://example.com/\n",
    "CRLF": "https://example.com/\r\nx: y",
    "tab": "https://exa\tmple.com/",
    "NUL": "https://example.com/\x00",
    "DEL": "https://example.com/\x7f",
    "unencoded path": "https://example.com/☂",
    "international host": "https://exämple.com/",
    "digits of another script": "http://\uff11\uff12\uff17.0.0.1/",
    "ideographic dot": "https://example\u3002com/",
    "full-width dot": "https://localhost\uff0eexample.com/",
    "one dot leader": "https://example\u2024com/",
    "digits in circles": "http://\u2460\u2461\u2466.0.0.1/",
    "letters in circles": "https://\u24d4xample.com/",
    "bold letters": "https://\U0001d41example.com/",
    "sharp s": "https://stra\u00dfe.example/",
    "Kelvin sign": "https://\u212aelvin.example/",
    "dotless i": "https://\u0131nside.example/",
    "soft hyphen": "https://exam\u00adple.com/",
    "zero-width space": "https://exam\u200bple.com/",
    "zero-width joiner": "https://exam\u200dple.com/",
    "right to left": "https://\u202eelpmaxe.com/",
    "byte order mark": "\ufeffhttps://example.com/",
    "fraction slash": "https://example.com\u2044@127.0.0.1/",
    "encoded dot in host": "https://example%2ecom/",
    "encoded NUL in host": "https://example.com%00.evil.example/",
    "encoded full-width dot": "https://localhost%ef%bc%8eexample.com/",
    "dot behind": "https://example.com./",
    "two dots behind": "https://example.com../",
    "numeric zone id": "http://[fe80::1%251]/",
    "zone id of IPv4": "http://127.0.0.1%25lo/",
    "number at the end": "https://example.com.1/",
    "hexadecimal at the end": "https://example.0x7f/",
    "address in octal and hex": "http://0x7f.0.0.01/",
    "address without a number": "http://0x/",
    "percent in host": "https://%65xample.com/",
    "empty label": "https://example..com/",
    "leading hyphen": "https://-example.com/",
    "host too long": "https://" + ".".join(["a" * 60] * 5) + "/",
    "label too long": "https://" + "a" * 64 + ".com/",
    "bad percent": "https://example.com/%zz",
    "no international name": "https://xn--a/",
    "one in capitals": "https://XN--A.example/",
    "one in the middle": "https://a.xn--ls8h.example/",
    "an empty one": "https://xn--0/",
    "one written in another way": "https://xn---bbk.example/",
    "one with an underscore": "https://xn--a_b-1na.example/",
    "one that begins with a joiner": "https://xn--1ug.example/",
    "over 2,048": "https://example.com/" + "a" * 2_029,
}


async def test_ambiguous_url_is_refused(control: Control) -> None:
    expected = {
        "subscription.http.url": "TARGET_URL_INVALID",
        "subscription.http.failover_urls[0]": "TARGET_URL_INVALID",
    }
    answers = {
        kind: await refused_both_ways(control, http=http(url=url, failover_urls=[url]))
        for kind, url in BAD_URLS.items()
    }
    assert {kind: found.violations for kind, found in answers.items()} == dict.fromkeys(
        BAD_URLS, expected
    )
    assert {found.reason for found in answers.values()} == {"TARGET_URL_INVALID"}


PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "192.0.0.1", "192.0.2.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "168.63.129.16", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "[::]", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:8.8.8.8]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::808:808]", "[fe80::1]",
    "[fec0::1]", "[fc00::1]", "[fd12:3456::1]", "[ff02::1]", "[2001:db8::1]", "[2002:7f00:1::]",
    "[2001::1]", "[100::1]", "[3fff::1]", "[fd00:ec2::254]",
    # Each kind in its other spellings, and less common kinds.
    "0.0.0.0", "100.100.100.200",  # noqa: S104 - sent to, not bound
    "100.127.255.255", "192.31.196.1", "192.52.193.1", "192.175.48.1",
    "198.19.255.255", "169.254.0.0", "172.20.10.1", "[0:0:0:0:0:0:0:1]", "[::ffff:10.0.0.1]",
    "[0:0:0:0:0:ffff:a00:1]", "[::ffff:0:7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::a00:1]",
    "[2002:a00:1::1]", "[2002:a9fe:a9fe::]", "[2001:0:808:808::80ff:fffe]", "[2001:2::1]",
    "[2001:10::1]", "[2001:20::1]", "[2620:4f:8000::1]", "[4000::1]", "[5f00::1]", "[ff05::1:3]",
    "[febf::1]", "[2606:4700::5efe:7f00:1]", "[2606:4700::200:5efe:8.8.8.8]",
]  # fmt: skip


async def test_non_public_address_is_refused(control: Control) -> None:
    expected = {
        "subscription.http.url": "TARGET_ADDRESS_FORBIDDEN",
        "subscription.http.failover_urls[0]": "TARGET_ADDRESS_FORBIDDEN",
    }
    answers = {}
    for address in PRIVATE:
        target = http(url=f"http://{address}:8080/", failover_urls=[f"https://{address}/"])
        answers[address] = (await refused_both_ways(control, http=target)).violations
    assert answers == dict.fromkeys(PRIVATE, expected)


async def test_public_or_explicitly_allowed_address_is_accepted(
    database_url: str,
) -> None:
    async with controlling(database_url, allow=["10.0.0.0/8", "fd00::/8"]) as control:
        for n, host in enumerate(["8.8.8.8", "[2606:4700::1111]", "10.1.2.3", "[fd12::1]"]):
            await control.create(orders(http=http(url=f"http://{host}/")), f"s{n}")
        found = await refusal(control.create(orders(http=http(url="http://127.0.0.1/")), "no"))
        assert found.violations == {"subscription.http.url": "TARGET_ADDRESS_FORBIDDEN"}


async def test_a_host_that_all_parsers_read_identically_is_accepted(control: Control) -> None:
    hosts = ["xn--bcher-kva.example", "XN--BCHER-KVA.example", "r3---sn-4g5.example", "_a.example"]
    for n, host in enumerate(hosts):
        await control.create(orders(http=http(url=f"https://{host}/")), f"s{n}")


async def test_disallowed_port_is_refused(control: Control) -> None:
    target = http(
        url="https://hooks.example:25/",
        failover_urls=["http://8.8.8.8:5432/", "http://a.example:8080/", "http://10.0.0.1:22/"],
    )
    found = await refused_both_ways(control, http=target)
    assert found.violations == {
        "subscription.http.url": "TARGET_ADDRESS_FORBIDDEN",
        "subscription.http.failover_urls[0]": "TARGET_ADDRESS_FORBIDDEN",
        "subscription.http.failover_urls[2]": "TARGET_ADDRESS_FORBIDDEN",
    }
    assert "HOOKLINE_EGRESS_PORTS" in found.message


async def test_denied_host_is_refused(database_url: str) -> None:
    async with controlling(database_url, deny_hosts=["*.rival.example", "127.0.0.1"]) as control:
        await control.create()
        denied = http(
            url="https://Hooks.Rival.example/", failover_urls=["https://127.0.0.1/", "http://a.b/"]
        )
        found = await refused_both_ways(control, http=denied)
        assert found.violations == {
            "subscription.http.url": "TARGET_ADDRESS_FORBIDDEN",
            "subscription.http.failover_urls[0]": "TARGET_ADDRESS_FORBIDDEN",
        }
        await control.create(orders(http=http(url="https://rival.example/")), "theirs")


async def test_plain_http_is_refused_if_https_is_required(database_url: str) -> None:
    async with controlling(database_url, https_only=True) as control:
        found = await refusal(
            control.create(
                orders(http=http(url="http://example.com/", failover_urls=["http://a.example/"]))
            )
        )
        assert found.violations == {
            "subscription.http.url": "TARGET_URL_INVALID",
            "subscription.http.failover_urls[0]": "TARGET_URL_INVALID",
        }
        await control.create()


async def test_too_many_failover_urls_are_refused(control: Control) -> None:
    found = await refused_both_ways(control, http=http(failover_urls=["https://example.com/"] * 5))
    assert found.violations == {"subscription.http.failover_urls": "LIMIT_EXCEEDED"}


BAD_HEADERS = {
    "CR": ("x-a", "a\rb"),
    "LF": ("x-a", "a\nb"),
    "CRLF": ("x-a", "a\r\nx-b: c"),
    "NUL": ("x-a", "a\x00"),
    "tab": ("x-a", "a\tb"),
    "DEL": ("x-a", "\x7f"),
    "non-ASCII": ("x-a", "é"),
    "emoji": ("x-a", "☂"),
    "leading space": ("x-a", " a"),
    "trailing space": ("x-a", "a "),
    "empty name": ("", "a"),
    "space in the name": ("x a", "a"),
    "colon in the name": ("x-a:", "a"),
    "line break in the name": ("x-a\r\nx-b", "a"),
    "non-ASCII name": ("x-ä", "a"),
    "pseudo": (":path", "a"),
    **{
        name: (name, "a")
        for name in [
            "host", "Host", "content-length", "Content-Type", "content-encoding",
            "transfer-encoding", "connection", "keep-alive", "proxy-authorization", "te", "trailer",
            "upgrade", "expect", "user-agent", "accept-encoding", "webhook-id", "Webhook-Signature",
            "webhook-anything", "traceparent", "tracestate", "baggage", "hookline-x",
        ]
    },
}  # fmt: skip


async def test_disallowed_header_is_refused(control: Control) -> None:
    answers = {}
    for kind, (name, value) in BAD_HEADERS.items():
        target = http(headers={name: value, "x-fine": "1"})
        found = await refused_both_ways(control, http=target)
        answers[kind] = [
            (field.partition("[")[0], reason) for field, reason in found.violations.items()
        ]
    expected = [("subscription.http.headers", "HEADER_INVALID")]
    assert answers == dict.fromkeys(BAD_HEADERS, expected)


async def test_too_many_oversized_or_duplicate_headers_are_refused(control: Control) -> None:
    for headers, reason in [
        ({f"x-{n}": "" for n in range(33)}, "LIMIT_EXCEEDED"),
        ({"x-a": "v" * 8_200}, "LIMIT_EXCEEDED"),
        ({"x-same": "1", "X-Same": "2"}, "HEADER_INVALID"),
    ]:
        found = await refusal(control.create(orders(http=http(headers=headers)), "new"))
        assert list(found.violations.values()) == [reason]


async def test_a_header_value_is_not_repeated_in_the_refusal(control: Control) -> None:
    found = await refusal(
        control.create(orders(http=http(headers={"authorization": "Bearer s3cr3t\n"})), "new")
    )
    assert "s3cr3t" not in f"{found}"
