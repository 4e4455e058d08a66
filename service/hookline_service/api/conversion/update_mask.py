"""Which fields an update changes: `update_mask` in either casing, `*`, or none; and its etag.

A resource says by its leaves which fields can be changed (`http.url`, `labels`). A path of a mask
stands for all leaves at and below it. Without a mask the populated leaves are meant, so that what
was read can be sent back with one field changed; a message whose fields exclude one another counts
as one value then. Output-only fields are no leaves: in the resource they are ignored, in a mask
they are refused.

Source: AIP-134 (update_mask), AIP-161 (field masks).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from google.protobuf.message import Message

from hookline_service.domain.errors import Reason, Violation

ALL: Final = "*"
FIELD: Final = "update_mask"

_UPPER = re.compile(r"([A-Z])")
_SHOWN_LENGTH_MAX = 64
_PATHS_MAX = 100


def leaves_in(
    paths: Collection[str],
    resource: Message,
    leaves: Iterable[str],
    violations: list[Violation],
    *,
    values: Collection[str] = (),
) -> frozenset[str]:
    """The leaves that an update changes; adds the paths that lead to none.

    `values`: messages that are replaced whole where the mask is missing and they are populated.
    """
    if not paths:
        return frozenset(leaf for leaf in leaves if _is_meant(resource, leaf, values))
    if len(paths) > _PATHS_MAX:
        text = f"has {len(paths):,} paths; at most {_PATHS_MAX} are allowed"
        violations.append(Violation(FIELD, text, Reason.LIMIT_EXCEEDED))
        return frozenset()
    if ALL in paths:
        if len(paths) > 1:
            violations.append(
                Violation(FIELD, "must have * alone, or not", Reason.UPDATE_MASK_INVALID)
            )
        return frozenset(leaves)
    chosen: set[str] = set()
    for path in paths:
        snake = _snake(path)
        found = {leaf for leaf in leaves if leaf == snake or leaf.startswith(f"{snake}.")}
        if not found:
            shown = ascii(path[:_SHOWN_LENGTH_MAX])
            violations.append(
                Violation(
                    FIELD, f"{shown} is no field that can be changed", Reason.UPDATE_MASK_INVALID
                )
            )
        chosen |= found
    return frozenset(chosen)


def names_leaf(paths: Collection[str], leaf: str) -> bool:
    """Whether a mask names this very leaf, and not just something that it is part of."""
    return any(_snake(path) == leaf for path in paths)


def _snake(path: str) -> str:
    return _UPPER.sub(r"_\1", path).lower()


def _is_meant(resource: Message, leaf: str, values: Collection[str]) -> bool:
    *parents, name = leaf.split(".")
    message = resource
    for parent in parents:
        if not message.HasField(parent):
            return False
        message = getattr(message, parent)
    if parents and parents[0] in values:
        return True
    present = {field.name for field, _ in message.ListFields()}
    return name in present


def etag_in(of_request: str, of_resource: str, field: str, violations: list[Violation]) -> str:
    """The etag that an update names, in the request or in its resource; empty: not compared."""
    if of_request and of_resource and of_request != of_resource:
        violations.append(Violation("etag", f"must not differ from {field}"))
    return of_request or of_resource
