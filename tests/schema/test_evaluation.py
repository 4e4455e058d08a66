"""Schemas are compiled without fetching anything, and violations are listed with their paths."""

import json

import pytest

from hookline_service.schema.evaluation import (
    LINEAR_PATTERNS,
    MAX_LISTED,
    compile_schema,
    pattern_size,
    violations_of,
)


@pytest.mark.parametrize(
    "json_schema",
    [
        "", "{", "1", "[]", '{"type": 1}', '{"pattern": "("}', '{"$ref": "#/$defs/none"}',
        '{"$ref": "https://example.com/schema.json"}', '{"$ref": "other.json"}',
        '{"$schema": "https://example.com/mine"}', '{"$ref": "file:///etc/passwd"}',
    ],
)  # fmt: skip
def test_invalid_schema_and_external_reference_are_rejected(json_schema: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compile_schema(json_schema)


@pytest.mark.parametrize("pattern", ["(?!y)x*y", "(?=x)y", r"(x)\1", "(?<=x)y"])
def test_a_pattern_that_may_backtrack_is_not_linear(pattern: str) -> None:
    assert pattern_size(pattern) is None
    text = json.dumps({"pattern": pattern})
    with pytest.raises(ValueError, match="regex"):
        compile_schema(text, LINEAR_PATTERNS)
    compile_schema(text)


def test_large_automaton_is_distinguished_from_a_small_one() -> None:
    small, large = pattern_size("^[a-z]+$"), pattern_size("[01]*1[01]{300}$")
    assert small == 4096
    assert large is not None
    assert large > small
    assert pattern_size("((a{100}){100}){100}") is None


def test_violations_have_paths_and_unlisted_ones_are_counted() -> None:
    validator = compile_schema('{"items": {"required": ["id"]}}')
    assert violations_of(validator, [{}, {"id": 1}, {}]) == (
        ['[0]: "id" is a required property', '[2]: "id" is a required property'],
        0,
    )
    listed, more = violations_of(validator, [{}] * 9)
    assert (len(listed), more) == (MAX_LISTED, 4)
