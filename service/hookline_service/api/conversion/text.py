"""Free text and labels in requests: bounded, and fit to be stored."""

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
    """What people call a thing."""
    return text_in(text, DISPLAY_NAME_LENGTH_MAX, field, violations)


def text_in(text: str, length_max: int, field: str, violations: list[Violation]) -> str:
    """Any text up to a length in characters; adds what is wrong with it."""
    problem = check_text(text, length_max)
    if problem:
        reason = Reason.LIMIT_EXCEEDED if len(text) > length_max else Reason.FIELD_INVALID
        violations.append(Violation(field, problem, reason))
    return text


def labels_in(
    labels: Mapping[str, str], limits: Limits, field: str, violations: list[Violation]
) -> dict[str, str]:
    """An owner's own marks; adds what is wrong with them."""
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
                    "must have a key of lower-case letters, digits, '_' and '-', that begins with"
                    " a letter and has 1 to 63 characters",
                )
            )
        text_in(value, LABEL_VALUE_LENGTH_MAX, path, violations)
    return dict(labels)
