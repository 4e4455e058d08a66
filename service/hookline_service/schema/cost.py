"""An upper bound of what checking data against a schema costs, computed from the schema's text.

Theory of operation. A validator walks the schema and the data together. Of a keyword's subschemas
some apply to the same value (`allOf`, `anyOf`, `$ref`, ...), the others to its children
(`properties`, `items`, ...). Let g(s, d) be the most that can be spent on one value d levels below
the one that schema s is applied to. Then

    g(s, 0) = own(s) + sum of g(t, 0)                               over t for the same value
    g(s, d) = sum of max g(c, d - 1) over the alternatives          over groups of t for children
            + sum of g(t, d)                                        over t for the same value

where the alternatives of a group exclude one another (a child is one property, or an additional
one). Every value of the data lies at one depth, so checking costs at most

    values * max over d of g(root, d)

whatever the data is: recursion that multiplies makes g grow with d, and is found by that. What is
spent on each byte (patterns, lengths) and the violations that can be found are bounded too.

Only keywords whose cost in the validator is known count. A schema with any other one, with a
reference that is not a plain JSON pointer, or too large to be looked at, has no bound here: None.
The unit is a step of 20 ns, measured; `tests/schema/test_cost.py` compares bounds with real time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import orjson

STEPS_PER_MS: Final = 50_000
_VIOLATION_STEPS: Final = 500
"""What it takes to describe one violation, without the copy of the data that it carries."""
_COPIED_BYTES_PER_STEP: Final = 20
_MAX_NESTING: Final = 64
_MAX_PATTERN_BYTES: Final = 1024 * 1024
"""The automata of all patterns of a schema: what they take to compile, and keep in memory."""
_MAX_WORK: Final = 50_000
"""Edges of the graph that are looked at, over all depths, before no bound is found."""

_DRAFTS: Final = frozenset(
    f"{scheme}://json-schema.org/{draft}/schema{end}"
    for scheme in ("http", "https")
    for draft in ("draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12")
    for end in ("", "#")
)
_ANNOTATIONS: Final = frozenset(
    [
        "$anchor",
        "$comment",
        "$defs",
        "default",
        "definitions",
        "deprecated",
        "description",
        "example",
        "examples",
        "format",
        "readOnly",
        "title",
        "writeOnly",
    ]
)
_CHEAP: Final = frozenset(
    [
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxContains",
        "maxItems",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minProperties",
        "minimum",
        "multipleOf",
        "type",
    ]
)
_SAME_VALUE: Final = frozenset({"else", "if", "not", "then"})
_SAME_VALUE_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf"})

PatternSize: TypeAlias = Callable[[str], int | None]
"""The size of a pattern's automaton, in bytes; None: it has none, or one that is too large."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The bound of one schema. Steps, but for `violations` and `levels`."""

    scalar: int
    """The most for a value that has no children, whatever else the data may be."""
    per_value: int
    per_byte: int
    violations: int
    """Found in one value, at most."""
    levels: int
    """How often a value may be checked anew while violations are listed, at most."""
    pattern_bytes: int
    """The automata of all patterns."""

    def to_check(self, data: bytes) -> int:
        """The most that a yes or no takes."""
        return self.per_value * _values_in(data) + self.per_byte * len(data)

    def to_explain(self, data: bytes) -> int:
        """The most that listing all violations takes, in time and, by that, in memory."""
        violation = _VIOLATION_STEPS + len(data) // _COPIED_BYTES_PER_STEP
        found = self.violations * _values_in(data) * violation
        return found + self.levels * self.to_check(data)


def cost_of(text: str, pattern_size: PatternSize, max_depth: int) -> Cost | None:
    """The bound for data of at most `max_depth` levels; None: there is none."""
    try:
        schema = orjson.loads(text)
        graph = _Graph(schema, pattern_size)
        graph.read()
        return graph.bound(max_depth)
    except (_NoBoundError, CycleError, orjson.JSONDecodeError):
        return None


def _values_in(data: bytes) -> int:
    """At least as many as there are: each but the first opens a container or follows a comma."""
    return 1 + data.count(b",") + data.count(b"[") + data.count(b"{")


class _NoBoundError(Exception):
    """The schema is outside of what this analysis covers."""


@dataclass(slots=True)
class _Steps:
    """What is spent at one depth."""

    value: int = 0
    byte: int = 0
    violations: int = 0
    subtree: int = 0
    """For each byte of the value and of all below it."""

    def add(self, other: _Steps) -> None:
        self.value += other.value
        self.byte += other.byte
        self.violations += other.violations
        self.subtree += other.subtree

    def raise_to(self, other: _Steps) -> None:
        self.value = max(self.value, other.value)
        self.byte = max(self.byte, other.byte)
        self.violations = max(self.violations, other.violations)
        self.subtree = max(self.subtree, other.subtree)


@dataclass(slots=True)
class _Node:
    """A subschema: its own cost, and its edges to others by their keys."""

    own: _Steps
    same_value: list[int] = field(default_factory=list)
    children: list[list[int]] = field(default_factory=list)
    """Groups; of each a child meets one at most."""


class _Graph:
    """The subschemas that can be reached from the root."""

    def __init__(self, root: Any, pattern_size: PatternSize) -> None:  # noqa: ANN401 - any JSON
        self._root = root
        self._pattern_size = pattern_size
        self._nodes: dict[int, _Node] = {}
        self._unread: list[tuple[Any, int]] = []
        self._pattern_bytes = 0

    def read(self) -> None:
        """Find all subschemas. Raises `_NoBoundError`."""
        self._refer(self._root, 0)
        while self._unread:
            self._read_one(*self._unread.pop())

    def _refer(self, schema: Any, nesting: int) -> int:  # noqa: ANN401 - any JSON
        """The key of a subschema, which is read if it was not yet."""
        key = id(schema)  # the whole tree is kept by its root
        if key not in self._nodes:
            if nesting > _MAX_NESTING or not isinstance(schema, dict | bool):
                raise _NoBoundError
            self._nodes[key] = _Node(_Steps(value=1, violations=1))
            if isinstance(schema, dict):
                self._unread.append((schema, nesting))
        return key

    def _read_one(self, schema: Mapping[str, Any], nesting: int) -> None:
        node, below = self._nodes[id(schema)], nesting + 1
        own = node.own
        for keyword, value in schema.items():
            if keyword in _ANNOTATIONS or keyword.startswith("x-"):
                pass
            elif keyword in {"$schema", "$id"}:
                self._check_identity(keyword, value, schema)
            elif keyword in _CHEAP:
                own.add(_Steps(value=1, violations=1))
            elif keyword in _SAME_VALUE:
                node.same_value.append(self._refer(value, below))
                own.add(_Steps(value=_size_of(value), violations=1))
            elif keyword in _SAME_VALUE_LISTS:
                node.same_value += self._refer_all(value, below)
                own.violations += 1
            elif keyword == "$ref":
                node.same_value.append(self._refer(self._target(value), below))
            else:
                self._read_other(keyword, value, node, below)
        self._read_children(schema, node, below)

    def _read_other(self, keyword: str, value: Any, node: _Node, below: int) -> None:  # noqa: ANN401 - any JSON
        own = node.own
        match keyword:
            case "enum" | "const":
                own.add(_Steps(value=2 * _size_of(value), violations=1))
            case "minLength" | "maxLength":
                own.add(_Steps(value=1, byte=1, violations=1))
            case "pattern":
                per_byte = self._steps_of_pattern(value)
                own.add(_Steps(value=len(value), byte=per_byte, violations=1))
            case "uniqueItems":
                own.add(_Steps(value=1, violations=1, subtree=1))
            case "required" if isinstance(value, list):
                own.add(_Steps(value=_size_of(value), violations=len(value)))
            case "dependentRequired" if isinstance(value, dict):
                size = _size_of(value)
                own.add(_Steps(value=size, violations=size))
            case "dependentSchemas":
                node.same_value += self._refer_all(_values_of(value), below)
            case "items" | "prefixItems" | "additionalItems" | "contains" | "properties":
                own.violations += 1
            case "patternProperties" | "additionalProperties" | "propertyNames":
                own.violations += 1
            case _:
                raise _NoBoundError

    def _read_children(self, schema: Mapping[str, Any], node: _Node, below: int) -> None:
        groups: list[list[Any]] = []
        if "properties" in schema or "additionalProperties" in schema:
            properties = _values_of(schema.get("properties", {}))
            node.own.value += len(properties)
            rest = [schema["additionalProperties"]] if "additionalProperties" in schema else []
            groups.append([*properties, *rest])
        if "patternProperties" in schema:
            by_pattern = schema["patternProperties"]
            groups += [[one] for one in _values_of(by_pattern)]
            for pattern in by_pattern:  # and once more to find the additional ones
                node.own.add(_Steps(value=2, byte=2 * self._steps_of_pattern(pattern)))
        items = schema.get("items", [])
        positions = [*_list_of(schema.get("prefixItems", []))]
        positions += items if isinstance(items, list) else [items]
        positions += [schema["additionalItems"]] if "additionalItems" in schema else []
        if positions:
            groups.append(positions)
        groups += [[schema[name]] for name in ("contains", "propertyNames") if name in schema]
        node.children = [self._refer_all(group, below) for group in groups]

    def _refer_all(self, schemas: Any, nesting: int) -> list[int]:  # noqa: ANN401 - any JSON
        return [self._refer(schema, nesting) for schema in _list_of(schemas)]

    def _steps_of_pattern(self, pattern: Any) -> int:  # noqa: ANN401 - any JSON
        size = self._pattern_size(pattern) if isinstance(pattern, str) else None
        if size is None:
            raise _NoBoundError
        self._pattern_bytes += size
        if self._pattern_bytes > _MAX_PATTERN_BYTES:
            raise _NoBoundError
        return 1 + size // 1024

    def _check_identity(self, keyword: str, value: Any, schema: Mapping[str, Any]) -> None:  # noqa: ANN401 - any JSON
        """Only the root may name itself, and not as one of the drafts: "#" then means the root."""
        if keyword == "$schema":
            is_known = value in _DRAFTS
        else:
            is_known = schema is self._root and "json-schema.org" not in str(value)
        if not is_known:
            raise _NoBoundError

    def _target(self, reference: Any) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            raise _NoBoundError
        found = self._root
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if found is not self._root and isinstance(found, dict) and {"$id", "id"} & found.keys():
                raise _NoBoundError  # another document begins here
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise _NoBoundError
        return found

    # -------------------------------------------------------------------------------- the bound

    def bound(self, max_depth: int) -> Cost:
        """The greatest of all depths. Raises `_NoBoundError`, and `CycleError` for a loop."""
        order = list(
            TopologicalSorter(
                {key: node.same_value for key, node in self._nodes.items()}
            ).static_order()
        )
        root, work = id(self._root), sum(1 for _ in self._edges())
        worst, scalar, subtree, depths = _Steps(), 0, 0, 0
        recent: list[dict[int, _Steps]] = []
        for depth in range(max_depth + 1):
            if work * (depth + 1) > _MAX_WORK:
                raise _NoBoundError
            at_depth = self._at_depth(order, recent[-1] if recent else None)
            spent = at_depth[root]
            if depth == 0:
                scalar = spent.value
            worst.raise_to(spent)
            subtree += spent.subtree
            depths += 1
            if not any(steps.value for steps in at_depth.values()):
                break  # no schema applies so deep
            if at_depth in recent:  # and so on for ever: a cycle that does not multiply
                depths = max_depth + 1
                subtree += max_depth * max(one[root].subtree for one in [*recent, at_depth])
                break
            recent = [*recent[-3:], at_depth]
        levels = depths * self._longest_chain(order)
        return Cost(
            scalar, worst.value, worst.byte + subtree, worst.violations, levels, self._pattern_bytes
        )

    def _at_depth(
        self, order: Sequence[int], above: Mapping[int, _Steps] | None
    ) -> dict[int, _Steps]:
        found: dict[int, _Steps] = {}
        for key in order:
            node = self._nodes[key]
            steps = _Steps()
            if above is None:
                steps.add(node.own)
            else:
                for group in node.children:
                    most = _Steps()
                    for child in group:
                        most.raise_to(above[child])
                    steps.add(most)
            for same in node.same_value:
                steps.add(found[same])
            found[key] = steps
        return found

    def _longest_chain(self, order: Sequence[int]) -> int:
        chains: dict[int, int] = {}
        for key in order:
            chains[key] = 1 + max((chains[same] for same in self._nodes[key].same_value), default=0)
        return max(chains.values())

    def _edges(self) -> Iterator[int]:
        for key, node in self._nodes.items():
            yield key
            yield from node.same_value
            for group in node.children:
                yield from group


def _values_of(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    if not isinstance(value, dict):
        raise _NoBoundError
    return list(value.values())


def _list_of(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    if not isinstance(value, list):
        raise _NoBoundError
    return value


def _size_of(value: Any) -> int:  # noqa: ANN401 - any JSON
    try:
        return len(orjson.dumps(value))
    except TypeError as error:  # nested too deeply
        raise _NoBoundError from error
