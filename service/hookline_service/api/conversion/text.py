"""Checks of free text and labels in requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hookline_service.domain.errors import Reason, Violation, over_limit
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_text

DISPLAY_NAME_LENGTH_MAX: Final = 256
LABEL_VALUE_LENGTH_MAX: Final = 256

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)


def display_name_in(text: str, field: str, violations: list[Violation]) -> str:
    """Return a display name; adds its violations."""
    return text_in(text, DISPLAY_NAME_LENGTH_MAX, field, violations)


def text_in(text: str, length_max: int, field: str, violations: list[Violation]) -> str:
    """Return a text of at most `length_max` characters; adds its violations."""
    problem = check_text(text, length_max)
    if problem:
        reason = Reason.LIMIT_EXCEEDED if len(text) > length_max else Reason.FIELD_INVALID
        violations.append(Violation(field, problem, reason))
    return text


def labels_in(
    labels: Mapping[str, str], limits: Limits, field: str, violations: list[Violation]
) -> dict[str, str]:
    """Return the labels of a resource; adds their violations."""
    if len(labels) > limits.max_labels:
        violations.append(
            over_limit(field, len(labels), "labels", "HOOKLINE_MAX_LABELS", limits.max_labels)
        )
        return {}
    for key, value in sorted(labels.items()):
        path = f"{field}[{key[:64]!a}]"
        if not _LABEL_KEY.fullmatch(key):
            violations.append(
                Violation(
                    path,
                    "must have a key of 1 to 63 lower-case letters, digits, '_' and '-', and begin"
                    " with a letter",
                )
            )
        text_in(value, LABEL_VALUE_LENGTH_MAX, path, violations)
    return dict(labels)
