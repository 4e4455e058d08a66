"""Lists of hosts that an operator wrote down: exact ones, and all below a suffix.

Judges what stands in a URL, as `domain/target.py` reads it: lower case, no trailing dot, addresses
in their one spelling. What a host leads to is for `egress`; a list of names holds nobody back who
writes the address instead, so addresses are denied by network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hookline_service.domain.target import parse_host
from hookline_service.targets.http.idn import check_international

_BELOW = "*."


@dataclass(frozen=True, slots=True)
class HostList:
    """Hosts; `in` asks whether one is among them."""

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    """Names that cover every name below them, at any depth, and not themselves."""

    def __bool__(self) -> bool:
        return bool(self.exact or self.suffixes)

    def __contains__(self, host: str) -> bool:
        if host in self.exact:
            return True
        if not self.suffixes:
            return False
        labels = host.split(".")
        return any(".".join(labels[start:]) in self.suffixes for start in range(1, len(labels)))


NO_HOSTS = HostList()


def parse_hosts(texts: Iterable[str]) -> HostList:
    """`hooks.example`, `*.example`, `192.0.2.1`, `[2001:db8::1]`; raises ValueError."""
    exact, suffixes = set(), set()
    for text in texts:
        if text.startswith(_BELOW):
            suffix = text.removeprefix(_BELOW)
            # With a label in front, so that no part of an address is taken for a suffix.
            suffixes.add(_checked(parse_host(f"a.{suffix}").removeprefix("a.")))
        else:
            exact.add(_checked(parse_host(text)))
    return HostList(frozenset(exact), frozenset(suffixes))


def _checked(host: str) -> str:
    if problem := check_international(host):
        raise ValueError(problem)
    return host
