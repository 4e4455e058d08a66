"""The syntax of targets: the URLs and custom headers that a subscription may have.

`targets/http/egress.py` decides whether an address may be reached: at creation for literal
addresses, at every connection for names. The syntax is narrower than the intersection of RFC 3986
and the WHATWG URL standard: URLs that two parsers could read as two different hosts (backslashes,
userinfo, `0x7f.1`, zone ids, percent-encoded or non-ASCII hosts) are rejected, so that the checked
host is the host of the connection. Accepted URLs are sent unchanged: paths are neither normalised
nor quoted again.

Sources: RFC 3986, RFC 9110 section 5.1 and 5.5, RFC 1123 section 2.1, WHATWG URL ("ends in a
number").
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from hookline_service.domain.errors import Reason, Violation

MAX_URL_LENGTH = 2_048
MAX_FAILOVER_URLS = 4
MAX_HEADERS = 32
MAX_HEADERS_BYTES = 8_192
"""Names, values and four bytes of framing for each header; custom and secret headers together."""

MAX_PORT = 65_535
MAX_HOST_LENGTH = 253
MAX_LABEL_LENGTH = 63

DEFAULT_PORTS = {"http": 80, "https": 443}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986 section 3.3 and 3.4, and the brackets that many query strings carry unencoded.
_NOT_IN_REQUEST_TARGET = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]-]")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE = re.compile(r"[^\x20-\x7e]")

RESERVED_HEADERS = frozenset(
    {
        # RFC 9110 section 7.6.1 and similar: they apply to one connection, not to the message.
        "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
        "http2-settings",
        # Written by Hookline, or inconsistent with the body that it sends.
        "host", "content-length", "content-type", "content-encoding", "content-range",
        "accept-encoding", "user-agent", "expect",
        # Trace headers: sent only if `propagate_trace` is set.
        "traceparent", "tracestate", "baggage",
    }
)  # fmt: skip
RESERVED_HEADER_PREFIXES = ("webhook-", "hookline-", "x-hookline-", "proxy-")


class TargetUrlError(ValueError):
    """An invalid URL; the text describes the error for the author of the URL."""


class TargetUrl(NamedTuple):
    """The parts of a target URL."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    request_target: str
    """Path and query exactly as written; `/` where there is no path."""

    @property
    def is_default_port(self) -> bool:
        """Whether the port is the default of the scheme; a `host` header omits it."""
        return self.port == DEFAULT_PORTS[self.scheme]


def check_url(url: str, field: str = "url", *, https_only: bool = False) -> list[Violation]:
    """Return the violations of a target URL."""
    if not url:
        return [Violation(field, "is required", Reason.FIELD_REQUIRED)]
    try:
        target = parse_target_url(url)
    except TargetUrlError as error:
        return [Violation(field, str(error), Reason.TARGET_URL_INVALID)]
    if https_only and target.scheme != "https":
        text = "must be an https URL: this service sends over TLS only"
        return [Violation(field, text, Reason.TARGET_URL_INVALID)]
    return []


def check_urls(
    url: str, failover_urls: Sequence[str], prefix: str = "", *, https_only: bool = False
) -> list[Violation]:
    """Return the violations of all URLs of a target, each with the path of its field."""
    violations = check_url(url, f"{prefix}url", https_only=https_only)
    if len(failover_urls) > MAX_FAILOVER_URLS:
        violations.append(
            Violation(
                f"{prefix}failover_urls",
                f"has {len(failover_urls)} URLs; at most {MAX_FAILOVER_URLS} are allowed",
                Reason.LIMIT_EXCEEDED,
            )
        )
        return violations
    for index, failover_url in enumerate(failover_urls):
        field = f"{prefix}failover_urls[{index}]"
        violations += check_url(failover_url, field, https_only=https_only)
    return violations


def parse_target_url(url: str) -> TargetUrl:
    """Parse a target URL; raise `TargetUrlError` if it is invalid."""
    if len(url) > MAX_URL_LENGTH:
        raise TargetUrlError(f"is {len(url)} characters long; at most {MAX_URL_LENGTH} are allowed")
    _refuse_characters(url)
    scheme, rest = _split_scheme(url)
    authority, request_target = _split_authority(rest)
    host, port_text = _split_port(authority)
    return TargetUrl(scheme, parse_host(host), _parse_port(port_text, scheme), request_target)


def _refuse_characters(url: str) -> None:
    odd = _NOT_PRINTABLE.search(url)
    if odd and odd[0] < "\x7f":
        raise TargetUrlError("must not contain spaces, tabs or other control characters")
    if odd:
        raise TargetUrlError(
            "must be ASCII: write an international host in its xn-- form, percent-encode the rest"
        )
    if "\\" in url:
        raise TargetUrlError("must not contain a backslash: URL parsers interpret it differently")
    if "#" in url:
        raise TargetUrlError("must not have a fragment: it is never sent to a server")


def _split_scheme(url: str) -> tuple[str, str]:
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise TargetUrlError("must be absolute and begin with https:// or http://")
    name = scheme[0][:-1].lower()
    if name not in DEFAULT_PORTS:
        raise TargetUrlError(f"must have the scheme https or http, not {name[:20]}")
    rest = url[scheme.end() :]
    if not rest.startswith("//"):
        raise TargetUrlError(f"must have // after {name}:")
    return name, rest[2:]


def _split_authority(rest: str) -> tuple[str, str]:
    end = len(rest)
    for delimiter in "/?":
        found = rest.find(delimiter)
        if 0 <= found < end:
            end = found
    authority, request_target = rest[:end], rest[end:]
    if "@" in authority:
        raise TargetUrlError("must not contain a user or password: use secret_headers")
    odd = _NOT_IN_REQUEST_TARGET.search(request_target)
    if odd:
        raise TargetUrlError(f"must percent-encode {odd[0]} in its path or query")
    if _BAD_PERCENT.search(request_target):
        raise TargetUrlError("must follow each % with two hexadecimal digits")
    if not request_target.startswith("/"):
        request_target = "/" + request_target
    return authority, request_target


def _split_port(authority: str) -> tuple[str, str | None]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise TargetUrlError("has an address whose brackets do not match")
        return host + bracket, rest[1:] if rest else None
    host, colon, port = authority.partition(":")
    if ":" in port:
        raise TargetUrlError("must have an IPv6 address in brackets, and one port at most")
    return host, port if colon else None


def _parse_port(text: str | None, scheme: str) -> int:
    if text is None:
        return DEFAULT_PORTS[scheme]
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text) or int(text) > MAX_PORT:
        raise TargetUrlError(f"must have a port between 1 and {MAX_PORT}, or none")
    return int(text)


def parse_host(host: str) -> str:
    """Return the normal form of a host, an address without brackets; raise `TargetUrlError`."""
    if not host:
        raise TargetUrlError("must have a host")
    if host.startswith("["):
        return _parse_ipv6(host[1:-1])
    if "%" in host:
        raise TargetUrlError("must not have a percent-encoded host")
    if host.endswith("."):
        raise TargetUrlError("must not have a host that ends in a dot: certificates never match it")
    if len(host) > MAX_HOST_LENGTH:
        raise TargetUrlError(f"has a host longer than {MAX_HOST_LENGTH} characters")
    labels = host.split(".")
    # Resolvers read a host that ends in a number as an IPv4 address in many notations
    # (2130706433, 0x7f.1, 127.1, 0177.0.0.1); only four plain decimal numbers are unambiguous.
    if _NUMBER.fullmatch(labels[-1]):
        return _parse_ipv4(host)
    for label in labels:
        if len(label) > MAX_LABEL_LENGTH:
            raise TargetUrlError(
                f"has a host with a label longer than {MAX_LABEL_LENGTH} characters"
            )
        if not _LABEL.fullmatch(label):
            raise TargetUrlError(
                "must have a host of letters, digits, hyphens and dots, each label beginning and"
                " ending with a letter or digit"
            )
    return host.lower()


def _parse_ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise TargetUrlError(
            "must write an IPv4 address as four decimal numbers without leading zeros"
        ) from None


def _parse_ipv6(text: str) -> str:
    if "%" in text:
        raise TargetUrlError("must not have a zone id in its address")
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise TargetUrlError("has brackets around text that is not an IPv6 address") from None
    if address.ipv4_mapped is not None:  # Python 3.13 formats it with dots; stored URLs have none
        high, low = divmod(int(address.ipv4_mapped), 1 << 16)
        return f"::ffff:{high:x}:{low:x}"
    return str(address)


def size_of_headers(headers: Mapping[str, str]) -> int:
    """Return the size of headers in bytes: names, values and framing."""
    return sum(len(name) + len(value) + 4 for name, value in headers.items())


def check_headers(
    headers: Mapping[str, str],
    secret_headers: Mapping[str, str],
    prefix: str = "",
    *,
    kept_names: Collection[str] = (),
    kept_bytes: int = 0,
) -> list[Violation]:
    """Return the violations of a target's custom and secret headers.

    `kept_names` are the names of unchanged secret headers, `kept_bytes` their size. A violation
    never contains a value, because it can be secret.
    """
    violations: list[Violation] = []
    entries = [
        (f"{prefix}{kind}", name, value)
        for kind, mapping in (("headers", headers), ("secret_headers", secret_headers))
        for name, value in mapping.items()
    ]
    count = len(entries) + len(kept_names)
    if count > MAX_HEADERS:
        text = f"has {count} headers, including secret ones; at most {MAX_HEADERS} are allowed"
        violations.append(Violation(f"{prefix}headers", text, Reason.LIMIT_EXCEEDED))
        return violations
    size = size_of_headers(headers) + size_of_headers(secret_headers) + kept_bytes
    if size > MAX_HEADERS_BYTES:
        text = (
            f"has {size:,} bytes, secret ones included; at most {MAX_HEADERS_BYTES:,} are allowed"
        )
        violations.append(Violation(f"{prefix}headers", text, Reason.LIMIT_EXCEEDED))
    seen = {name.lower() for name in kept_names}
    for field, name, value in entries:
        for problem in _problems_of_header(name, value, seen):
            path = f"{field}[{name[:64]!a}]"
            violations.append(Violation(path, problem, Reason.HEADER_INVALID))
        seen.add(name.lower())
    return violations


def _problems_of_header(name: str, value: str, seen: set[str]) -> Iterator[str]:
    lowered = name.lower()
    if not _TOKEN.fullmatch(name):
        yield "is not a header name: letters, digits and !#$%&'*+-.^_`|~ are allowed"
    elif lowered in RESERVED_HEADERS or lowered.startswith(RESERVED_HEADER_PREFIXES):
        yield "is reserved for HTTP, Hookline or tracing"
    elif lowered in seen:
        yield "is given twice: names that differ only in case are the same header"
    if _NOT_IN_VALUE.search(value):
        yield "has a value with a character other than printable ASCII"
    elif value != value.strip(" "):
        yield "has a value that begins or ends with a space, which HTTP removes"
