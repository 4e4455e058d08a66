"""How one variable is read: its parser, and what is said where it is wrong.

A parser returns the value, or raises ValueError with what is allowed, as the end of a sentence that
begins with the variable's name. Values that are secret never stand in a message. Must not know
which settings there are.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from hookline_service.config.secret_sources import (
    COMMAND_SUFFIX,
    COMMAND_TIMEOUT_S,
    FILE_SUFFIX,
    SecretSourceError,
    source_of,
)
from hookline_service.identity.issuer_keys import is_fit_url
from hookline_service.store.secrets import MasterKeyError, parse_master_keys

T = TypeVar("T")
D = TypeVar("D")
E = TypeVar("E", bound=StrEnum)

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^:,\[\]\s]*)(?::[0-9]{1,5})?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
"""libpq's: none (a socket), one or several."""

PREFIX: Final = "HOOKLINE_"
MAX_CLAIM_LENGTH: Final = 255
NOT_OURS: Final = frozenset(
    {
        "HOOKLINE_API_KEY",
        "HOOKLINE_API_KEY_COMMAND",
        "HOOKLINE_API_KEY_FILE",
        "HOOKLINE_CLIENT_CERT",
        "HOOKLINE_CLIENT_KEY",
        "HOOKLINE_SERVER",
        "HOOKLINE_SERVER_CA",
        "HOOKLINE_SERVER_NAME",
        "HOOKLINE_TEST_DATABASE",
        "HOOKLINE_TOKEN",
        "HOOKLINE_TOKEN_COMMAND",
        "HOOKLINE_TOKEN_FILE",
    }
)
"""Read by the command line's client and by the tests; no settings of the service."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where gRPC is served."""

    host: str
    port: int
    """0: any that is free."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Reader:
    """Reads variables, and keeps what is wrong with them instead of raising."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> None:
        self.environ = environ
        self._flags = flags
        self.names: set[str] = set()
        """Of all variables that were asked for."""
        self.problems: list[str] = []
        self.command_timeout_s = COMMAND_TIMEOUT_S
        """Of a command that prints a secret."""

    def __call__(
        self, name: str, parse: Callable[[str], T], default: D, *, secret: bool = False
    ) -> T | D:
        """The value of HOOKLINE_`name`; the default where it is unset, empty or wrong."""
        self.names.add(PREFIX + name)
        flag = self._flags.get(name)
        text = (self.environ.get(PREFIX + name, "") if flag is None else flag).strip()
        if not text and flag is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            called = PREFIX + name if flag is None else f"--{name.lower().replace('_', '-')}"
            shown = "" if secret else f' is "{text}"'
            self.problems.append(f"{called}{shown}: {error}")
            return default

    def secret(
        self, name: str, parse: Callable[[str], T], default: D, *, is_wanted: bool = True
    ) -> T | D:
        """Return the value of a secret, which HOOKLINE_`name`, `…_FILE` or `…_COMMAND` gives.

        Where it is not wanted, no file is read and no command is run.
        """
        variable = PREFIX + name
        self.names |= {variable, variable + FILE_SUFFIX, variable + COMMAND_SUFFIX}
        try:
            source = source_of(self.environ, variable, self.command_timeout_s)
            if source is None:
                return self(name, parse, default, secret=True)
            if not is_wanted:
                return default
            text = source.read()
        except SecretSourceError as error:
            self.problems.append(str(error))
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(f"{source.variable}: {error}")
            return default

    def unknown(self) -> list[str]:
        """A problem for each HOOKLINE_ variable that nobody read."""
        found = {name for name in self.environ if name.startswith(PREFIX)}
        known = sorted(name.removeprefix(PREFIX) for name in self.names)
        problems = []
        for name in sorted(found - self.names - NOT_OURS):
            nearest = difflib.get_close_matches(name.removeprefix(PREFIX), known, 1, 0.6)
            hint = f": did you mean {PREFIX}{nearest[0]}?" if nearest else ""
            problems.append(f"{name} is not a setting of Hookline{hint}")
        return problems


# A parser returns the value, or raises ValueError with what is allowed.


def switch(text: str) -> bool:
    """`on` or `off`, in any casing."""
    if text.lower() not in {"on", "off"}:
        raise ValueError("must be on or off")
    return text.lower() == "on"


def integer(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A whole number within bounds, both inclusive."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            of = f" of {unit}" if unit else ""
            raise ValueError(f"must be a whole number{of} from {low} to {high}")
        return int(text)

    return parse


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """A number within bounds, both inclusive."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"must be a number of {unit} from {low:g} to {high:g}")
        return value

    return parse


def one_of(kind: type[E]) -> Callable[[str], E]:
    """One of an enum's values, in any casing."""

    def parse(text: str) -> E:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueError(f"must be one of {', '.join(kind)}") from None

    return parse


def parse_address(text: str) -> ListenAddress:
    """HOST:PORT; an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_host = bool(host) and (is_bracketed or ":" not in host) and not set(host) & set("/[]@ ")
    if not (is_host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
    return ListenAddress(host, int(port))


def parse_database_url(text: str) -> str:
    """A libpq URL; asyncpg judges the rest of it."""
    scheme, _, rest = text.partition("://")
    hosts = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    if scheme not in {"postgres", "postgresql"} or not _HOSTS.fullmatch(hosts):
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database")
    return text


def parse_path(text: str) -> Path:
    """A directory, which need not be there yet."""
    if not text or "\0" in text:
        raise ValueError("must be a directory")
    return Path(text)


def parse_file(text: str) -> Path:
    """A file; whether it can be used is told where it is read."""
    if not text or "\0" in text:
        raise ValueError("must be a file")
    return Path(text)


def parse_claim(text: str) -> str:
    """The name of a claim in a token."""
    if not text.isprintable() or len(text) > MAX_CLAIM_LENGTH:
        raise ValueError(f"must be a claim's name, of at most {MAX_CLAIM_LENGTH} characters")
    return text


def parse_key_location(text: str) -> str | Path:
    """Where an issuer's keys are: a URL, or a file."""
    if "://" not in text:
        return parse_file(text)
    if not is_fit_url(text):
        raise ValueError("must be a file or an https:// URL (http:// from this machine only)")
    return text


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Master keys, joined by commas."""
    try:
        return parse_master_keys(text)
    except MasterKeyError as error:
        raise ValueError(str(error)) from None
