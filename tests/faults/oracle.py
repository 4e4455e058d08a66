"""The oracle: a file outside the service, with every event name that was acknowledged.

A run is judged by it alone: what stands in it must have been delivered, or be visibly final.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable


class Oracle:
    """The names that were acknowledged, in the order in which they were."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._path.touch()
        self.count = 0

    def acknowledge(self, names: Iterable[str]) -> None:
        """A publisher was answered OK."""
        lines = [f"{name}\n" for name in names]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.count += len(lines)

    def ids(self) -> set[str]:
        """The ids (`evt_…`) in the file, which receivers get as `webhook-id`."""
        return {line.strip().rpartition("/")[2] for line in self._path.read_text().splitlines()}
