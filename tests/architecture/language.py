"""The words of the repository, checked by `make lint`: files that people write hold no banned word.

Reads `banned_words.toml` beside it. Identifiers are split at underscores and at changes of case, so
`is_stale` and `isStale` hold the word `stale`. A line may keep a word with a reason:
`allow-word: WORD (REASON)`, in whatever the file's comments are.
"""

import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from tests.architecture.repository import ROOT, files, is_generated

TABLE = pathlib.Path(__file__).with_name("banned_words.toml")
_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[A-Za-z]+")
_ALLOWED = re.compile(r"allow-word: (\w+) \((?=[^)]*\w)[^)]+\)")


class Finding(NamedTuple):
    """A banned word in a line; lines count from 1."""

    line: int
    word: str
    instead: str


@dataclass(frozen=True, slots=True)
class Language:
    """Banned words with what to write instead, and the paths that are not checked."""

    words: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    @classmethod
    def read(cls, table: pathlib.Path = TABLE) -> Self:
        """Read a table; its `exempt` and `unchecked` paths are both skipped."""
        content = tomllib.loads(table.read_text(encoding="utf-8"))
        return cls(content["words"], (*content["exempt"], *content["unchecked"]))

    def checks(self, path: pathlib.PurePosixPath) -> bool:
        """Whether a path, relative to the root, is one to check."""
        name = str(path)
        return not is_generated(path) and not any(
            name.startswith(skipped) if skipped.endswith("/") else name == skipped
            for skipped in self.skipped
        )

    def findings(self, text: str) -> Iterator[Finding]:
        """Yield each banned word of a text, at most once a line."""
        for number, line in enumerate(text.splitlines(), start=1):
            words = {word.lower() for word in _WORD.findall(_CASE.sub(" ", line))}
            banned = words & self.words.keys()
            for word in sorted(banned - set(_ALLOWED.findall(line))):
                yield Finding(number, word, self.words[word])


def report(language: Language) -> list[str]:
    """Check every text file of the repository; return a line for each finding."""
    lines = []
    for path in filter(language.checks, files()):
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            continue
        names = language.findings(str(path))
        lines += [f"{path}: its name: {word!r}: write {instead}" for _, word, instead in names]
        for line, word, instead in language.findings(content.decode("utf-8", "replace")):
            lines.append(f"{path}:{line}: {word!r}: write {instead}")
    return lines


def main() -> int:
    """Print what was found; return the exit code."""
    found = report(Language.read())
    for line in found:
        print(line)  # noqa: T201
    if found:
        print(f"language: {len(found)} banned words; see {TABLE.relative_to(ROOT)}")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
