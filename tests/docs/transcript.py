"""A console block as steps, and the comparison of the shown output with the real one.

A page shows one real run. Another run has other ids, secrets and times. An id on the page is bound
to the real id at its first appearance in an output, and stands for it afterwards, also in commands.
Times and durations are compared by their format. A line `...` matches any lines, `…` any part of a
line; runs of white space are equal.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.docs.pages import Block

PROMPT = "$ "
_DRAWN = {
    "head": r"[1-9][0-9]*:[0-9a-f]{64}",
    "event": r"evt_[0-9a-hjkmnp-tv-z]{26}",
    "delivery": r"dlv_[0-9a-hjkmnp-tv-z]{26}",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "key": r"(?<=apiKeys/)[0-9A-Za-z]{12}",
    "etag": r'(?<=")[0-9a-f]{8}-[0-9]+(?=")',
    "secret": r"whsec_[A-Za-z0-9+/=]{32,}",
}
_SHORTENED_SECRET = r"whsec_[A-Za-z0-9+/=]*…"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = rf"{_DATE}T[0-9:.]+Z|(?:{_DATE} )?[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}\.[0-9]{{3}}"
_TOKEN = re.compile(
    "|".join(
        [
            f"(?P<secret>{_SHORTENED_SECRET}|{_DRAWN['secret']})",
            *(f"(?P<{kind}>{_DRAWN[kind]})" for kind in _DRAWN if kind != "secret"),
            f"(?P<time>{_TIME})",
            r"(?P<latency>(?<=\"latency\": \")[0-9.]+s)",
            r"(?P<ago>\([0-9.]+ (?:ms|s|min|h|d) ago\))",
            r"(?P<duration>[0-9.]+ (?P<unit>ms|s|min|h|d)\b)",
            r"(?P<lines>^\.\.\.\n)",
            r"(?P<part>…)",
        ]
    ),
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a page and its output there."""

    place: str
    command: str
    output: str


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a block; a command continues over open quotes and escaped line ends."""
    lines = block.text.splitlines()
    position = 0
    while position < len(lines):
        start = position
        assert lines[start].startswith(PROMPT), f"{block.page}:{block.line + start}: no prompt"
        command = [lines[start].removeprefix(PROMPT)]
        position += 1
        while _goes_on("\n".join(command)):
            command.append(lines[position])
            position += 1
        output = []
        while position < len(lines) and not lines[position].startswith(PROMPT):
            output.append(lines[position] + "\n")
            position += 1
        place = f"{block.page}:{block.line + start}"
        yield Step(place, "\n".join(command), "".join(output))


def _goes_on(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


class Meanings:
    """The real ids, secrets and ports of this run, by those on the page."""

    def __init__(self, ports: dict[str, str]) -> None:
        """`ports`: the real port by the port on the page."""
        self._ports = ports
        self._drawn: dict[str, str] = {}

    def real(self, text: str) -> str:
        """Return a command or a program of the page with real ids and ports."""
        for shown, drawn in self._drawn.items():
            text = text.replace(shown, drawn)
        return self._with_real_ports(text)

    def fits(self, shown: str, printed: str) -> bool:
        """Return whether an output matches the page; bind ids that appear for the first time."""
        pattern, groups = self._pattern(_squeezed(self._with_real_ports(shown)))
        match = re.fullmatch(pattern, _squeezed(printed))
        if match is None:
            return False
        self._drawn.update({token: match[group] for token, group in groups.items()})
        return True

    def _with_real_ports(self, text: str) -> str:
        for shown, real in self._ports.items():
            text = re.sub(rf"\b{shown}\b", real, text)
        return text

    def _pattern(self, shown: str) -> tuple[str, dict[str, str]]:
        """Return a regular expression for an output, and its group names by token."""
        groups: dict[str, str] = {}
        parts: list[str] = []
        end = 0
        for token in _TOKEN.finditer(shown):
            parts.append(re.escape(shown[end : token.start()]))
            parts.append(self._part(token, groups))
            end = token.end()
        return "".join([*parts, re.escape(shown[end:])]), groups

    def _part(self, token: re.Match[str], groups: dict[str, str]) -> str:
        text = token[0]
        kind = next(kind for kind, found in token.groupdict().items() if found is not None)
        if kind in _DRAWN:
            if text in self._drawn:
                return re.escape(self._drawn[text])
            if text in groups:
                return f"(?P={groups[text]})"
            groups[text] = f"drawn{len(groups)}"
            return f"(?P<{groups[text]}>{_DRAWN[kind]})"
        if kind == "duration":
            unit = "(?:ms|s)" if token["unit"] in {"ms", "s"} else token["unit"]
            return rf"[0-9.]+ {unit}"
        return {
            "time": f"(?:{_TIME})",
            "latency": r"[0-9.]+s",
            "ago": r"\([0-9.]+ (?:ms|s|min|h|d) ago\)",
            "lines": r"(?:.*\n)*?",
            "part": r"[^\n]*?",
        }[kind]


def _squeezed(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines if line)
