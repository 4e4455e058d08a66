"""Bounds of what checks cost: ordinary schemas have one, what multiplies is found."""

import json
import random
import time
from typing import Any

import pytest

from hookline_service.schema.cost import STEPS_PER_MS, Cost, cost_of
from hookline_service.schema.evaluation import LINEAR_PATTERNS, compile_schema, pattern_size
from tests.schema.hostile import HOSTILE, RECURSIVE, doubling

DEPTH = 128
ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/order",
    "type": "object",
    "required": ["id", "lines"],
    "properties": {
        "id": {"type": "string", "pattern": "^[a-z0-9-]{1,40}$"},
        "state": {"enum": ["new", "paid", "sent"]},
        "customer": {"$ref": "#/$defs/customer"},
        "lines": {
            "type": "array",
            "uniqueItems": True,
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "maxLength": 40},
                    "quantity": {"type": "integer", "minimum": 1},
                    "price": {"oneOf": [{"type": "number"}, {"type": "null"}]},
                },
                "additionalProperties": False,
            },
        },
    },
    "$defs": {"customer": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#"}}},
}


def cost(schema: Any) -> Cost | None:  # noqa: ANN401 - any JSON
    """The bound for data of the usual depth."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return cost_of(text, pattern_size, DEPTH)


def test_an_ordinary_schema_is_cheap() -> None:
    found = cost(ORDER)
    assert found is not None
    assert found.per_value < 50
    assert found.to_check(json.dumps({"id": "x" * 40, "lines": [{}] * 50}).encode()) < STEPS_PER_MS


def test_recursion_that_does_not_multiply_costs_the_same_at_every_depth() -> None:
    deep, flat = cost(TREE), cost({**TREE, "properties": {"name": {"type": "string"}}})
    assert deep is not None
    assert flat is not None
    assert deep.per_value <= flat.per_value + 5


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_cost_doubles_when_a_schema_is_applied_twice_at_each_level(keyword: str) -> None:
    found = cost(doubling(keyword))
    assert found is not None
    assert found.per_value >= found.scalar > 2**26


def test_recursion_that_multiplies_grows_with_the_depth_of_the_data() -> None:
    shallow = cost_of(RECURSIVE, pattern_size, 5)
    deep = cost_of(RECURSIVE, pattern_size, 20)
    assert shallow is not None
    assert deep is not None
    assert 2**5 < shallow.per_value < 2**10
    assert deep.per_value > 2**20
    assert deep.scalar == shallow.scalar < 10


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"not": {"$ref": "#"}}]},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"$ref": "#name", "$defs": {"x": {"$anchor": "name"}}},
        {"$dynamicRef": "#x"},
        {"unevaluatedProperties": False},
        {"$schema": "https://example.com/mine"},
        {"$id": "https://json-schema.org/draft/2020-12/schema"},
        {"properties": {"x": {"$id": "https://example.com/x", "type": "string"}}},
        {"$ref": "#/$defs/x/$defs/y",
         "$defs": {"x": {"$id": "https://example.com/x", "$defs": {"y": {"$ref": "#"}}}}},
        {"pattern": "(?!x)"},
        {"contentMediaType": "application/json"},
        {"keyword of tomorrow": 1},
        {"properties": 1},
        {"allOf": {}},
        [],
        "{",
    ],
)  # fmt: skip
def test_schema_without_a_proven_bound_has_none(schema: Any) -> None:  # noqa: ANN401 - any JSON
    assert cost(schema) is None


@pytest.mark.parametrize("schema, data", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_hostile_check_counts_as_quick(schema: str, data: bytes) -> None:
    found = cost(schema)
    assert found is None or found.to_check(data) > 100 * STEPS_PER_MS


def test_many_small_patterns_that_are_large_together_have_no_bound() -> None:
    """A schema is compiled on the event loop if it has one, and kept in memory."""
    asked: list[str] = []

    def size(pattern: str) -> int | None:
        asked.append(pattern)
        return pattern_size(pattern)

    patterns = [{"pattern": rf"\S{{{n},99}}"} for n in range(1, 99)]
    assert cost_of(json.dumps({"allOf": patterns[:2]}), size, DEPTH) is not None
    asked.clear()
    assert cost_of(json.dumps({"allOf": patterns}), size, DEPTH) is None
    assert len(asked) < 10


def test_cost_includes_what_a_violation_copies() -> None:
    small, large = cost({"enum": ["x"]}), cost({"enum": ["x" * 10_000]})
    assert small is not None
    assert large is not None
    assert large.per_value > small.per_value + 10_000


def random_schema(draw: random.Random, depth: int) -> Any:  # noqa: ANN401 - any JSON
    """A schema of keywords that have a bound."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(
            [
                {"type": "integer"}, {"maxLength": 3}, {"enum": [1, "x", [1]]}, {"const": {"a": 1}},
                {"pattern": "[xy]*y[xy]{20}$"}, {"required": ["a", "b"]}, {"$ref": "#"}, True,
                {"uniqueItems": True},
            ]
        )  # fmt: skip
    below = [random_schema(draw, depth - 1) for _ in range(3)]
    return draw.choice(
        [
            {"allOf": below}, {"anyOf": below}, {"oneOf": below}, {"not": below[0]},
            {"properties": {"a": below[0], "b": below[1]}, "additionalProperties": below[2]},
            {"patternProperties": {"a": below[0], "^b": below[1]}, "propertyNames": below[2]},
            {"prefixItems": below[:2], "items": below[2]}, {"items": below[0]},
            {"if": below[0], "then": below[1], "else": below[2]}, {"contains": below[0]},
        ]
    )  # fmt: skip


def random_data(draw: random.Random, depth: int) -> Any:  # noqa: ANN401 - any JSON
    if depth == 0 or draw.random() < 0.1:
        return draw.choice([1, "x", "xy" * 500, None, True])
    if draw.random() < 0.5:
        return [random_data(draw, depth - 1) for _ in range(draw.randrange(5))]
    return {name: random_data(draw, depth - 1) for name in ("a", "b", "c")}


def test_check_takes_no_longer_than_its_bound() -> None:
    """The bound is what the event loop trusts: random schemas on random data, against real time."""
    compared = 0
    for seed in range(400):
        draw = random.Random(seed)
        text = json.dumps(random_schema(draw, 5))
        found = cost_of(text, pattern_size, 8)
        if found is None:
            continue
        validator = compile_schema(text, LINEAR_PATTERNS)
        for _ in range(3):
            value = random_data(draw, 6)
            data = json.dumps(value, separators=(",", ":")).encode()
            steps = found.to_check(data)
            if steps > 100 * STEPS_PER_MS:
                continue
            best_s = min(_cpu_s(validator, value) for _ in range(2))
            # Slack for a busy machine, and for reading the data out of Python. What the bound
            # overlooks multiplies, and is beyond any slack.
            assert best_s * 1_000 < 20 + 4 * steps / STEPS_PER_MS, (seed, text)
            compared += 1
    assert compared > 300


def _cpu_s(validator: Any, value: Any) -> float:  # noqa: ANN401 - any JSON
    began_s = time.thread_time()
    validator.is_valid(value)
    return time.thread_time() - began_s
