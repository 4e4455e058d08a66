"""The SQL statements, read from `sql/*.sql`: blocks headed `-- name: x`, one statement each."""

from __future__ import annotations

import re
from importlib import resources

_HEAD = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


class Statements:
    """The named statements of one file, as attributes."""

    def __init__(self, noun: str) -> None:
        text = (
            resources.files("hookline_service.store").joinpath(f"sql/{noun}.sql").read_text("utf-8")
        )
        parts = _HEAD.split(text)[1:]
        self._noun = noun
        self._by_name = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))

    def __getattr__(self, name: str) -> str:
        try:
            return self._by_name[name]
        except KeyError:
            raise AttributeError(f"sql/{self._noun}.sql has no statement {name!r}") from None

    def names(self) -> tuple[str, ...]:
        """All statements of the file, in its order."""
        return tuple(self._by_name)
