"""Markdown pages as data: headings, links, tables and fenced blocks. Does not run anything."""

import functools
import pathlib
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.architecture.repository import ROOT, files

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: pathlib.PurePosixPath
    line: int
    """Line number of the first line of text."""
    info: str
    """The text after the opening backticks: a language, and optional marks."""
    text: str

    @property
    def language(self) -> str:
        """The first word of `info`; empty if there is none."""
        return self.info.partition(" ")[0]

    @property
    def place(self) -> str:
        """`PATH:LINE`, for error messages."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file."""

    path: pathlib.PurePosixPath
    text: str

    def blocks(self) -> Iterator[Block]:
        """Yield the fenced blocks, in order."""
        for match in _FENCE.finditer(self.text):
            line = self.text.count("\n", 0, match.start("text")) + 1
            yield Block(self.path, line, match["info"].strip(), textwrap.dedent(match["text"]))

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def on_one_line(self) -> str:
        """The prose with each run of white space as one space, so that line breaks do not count."""
        return " ".join(self.prose.split())

    def anchors(self) -> set[str]:
        """Return the anchors of the headings, in the form that code hosts generate."""
        return {_anchor_of(title) for _, title in _HEADING.findall(self.prose)}

    def links(self) -> list[str]:
        """Return the targets of the links."""
        return _LINK.findall(self.prose)

    def code(self) -> list[str]:
        """Return the code spans."""
        return _CODE.findall(self.prose)

    def table(self, heading: str) -> list[list[str]]:
        """Return the rows of the first table below a heading, without its head row."""
        _, _, below = self.text.partition(f" {heading}\n")
        rows = re.search(r"^\|.*\n\|[ :|-]+\n((?:\|.*\n)+)", below, re.MULTILINE)
        assert rows is not None, f"{self.path}: no table below {heading!r}"
        return [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            for row in rows[1].splitlines()
        ]


def _anchor_of(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")


@functools.cache
def page(path: str) -> Page:
    """Return one page by its path from the root."""
    return Page(pathlib.PurePosixPath(path), (ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def pages() -> tuple[Page, ...]:
    """Return every Markdown file of the repository."""
    return tuple(page(str(path)) for path in files() if path.suffix == ".md")
