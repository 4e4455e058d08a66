"""The fields that an update changes: `update_mask` in snake or camel case, `*`, or none; the etag.

The leaves of a resource are the fields that can be changed (`http.url`, `labels`). A path of a mask
selects all leaves at and below it. Without a mask the populated leaves are selected, so that a
resource that was read can be sent back with one field changed; a message whose fields exclude one
another then counts as one value. Output-only fields are not leaves: in the resource they are
ignored, in a mask they are rejected.

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
    """Return the leaves that an update changes; adds a violation for each path without a leaf.

    `values`: messages that are replaced as a whole if they are populated and there is no mask.
    """
    if not paths:
        return frozenset(leaf for leaf in leaves if _is_selected(resource, leaf, values))
    if len(paths) > _PATHS_MAX:
        text = f"has {len(paths):,} paths; at most {_PATHS_MAX} are allowed"
        violations.append(Violation(FIELD, text, Reason.LIMIT_EXCEEDED))
        return frozenset()
    if ALL in paths:
        if len(paths) > 1:
            violations.append(
                Violation(FIELD, "must not combine * with other paths", Reason.UPDATE_MASK_INVALID)
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
                    FIELD, f"{shown} is not a field that can be changed", Reason.UPDATE_MASK_INVALID
                )
            )
        chosen |= found
    return frozenset(chosen)


def names_leaf(paths: Collection[str], leaf: str) -> bool:
    """Return whether a mask names the leaf itself, not only a message that contains it."""
    return any(_snake(path) == leaf for path in paths)


def _snake(path: str) -> str:
    return _UPPER.sub(r"_\1", path).lower()


def _is_selected(resource: Message, leaf: str, values: Collection[str]) -> bool:
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
    """Return the etag of an update, from the request or its resource; empty: not compared."""
    if of_request and of_resource and of_request != of_resource:
        violations.append(
            Violation("etag", f"must be equal to {field}, or one of the two must be empty")
        )
    return of_request or of_resource
