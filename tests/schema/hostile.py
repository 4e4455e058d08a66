"""Schemas and data by which a validator can be made to spend time and memory without bound."""

from __future__ import annotations

import json

LEVELS = 26


def nested_lists(levels: int) -> bytes:
    """Lists in lists, with something in the innermost."""
    return b"[" * levels + b"1" + b"]" * levels


def doubling(keyword: str = "allOf", innermost: str = "string") -> str:
    """Each level applies the one below it twice: 2^26 checks of one value."""
    levels = {
        f"a{level}": {keyword: [{"$ref": f"#/$defs/a{level - 1}"}] * 2}
        for level in range(1, LEVELS + 1)
    }
    innermost_schema = {"type": innermost}
    return json.dumps(
        {"$defs": {"a0": innermost_schema, **levels}, "$ref": f"#/$defs/a{LEVELS}"},
        separators=(",", ":"),
    )


RECURSIVE = json.dumps(
    {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 2 + [{"type": "string"}]}
)
"""Each level of the data is looked at twice as often as the one above it."""
LOOKAHEAD = '{"pattern": "(?!y)x*x*x*x*y"}'
UNEVALUATED = json.dumps(
    {"$ref": "#/$defs/a12", "$defs": {
        "a0": {"properties": {"x": True}},
        **{f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2, "unevaluatedProperties": False}
           for n in range(1, 13)},
    }}
)  # fmt: skip

HOSTILE = {
    "recursive anyOf": (RECURSIVE, nested_lists(40)),
    "a pattern with lookahead": (LOOKAHEAD, b'"%s"' % (b"x" * 60_000)),
    "26 levels of allOf": (doubling(), b'"x"'),
    "26 levels of allOf that fail": (doubling(), b"1"),
    "26 levels of anyOf": (doubling("anyOf"), b"1"),
    "26 levels of oneOf": (doubling("oneOf"), b"1"),
    "unevaluated properties, nested": (UNEVALUATED, b'{"y": 1}'),
    "an automaton of 10 MB": ('{"pattern": "((a{100}){100}){10}"}', b'"%s"' % (b"a" * 250_000)),
}
