"""Decides where data is checked against its schema: here, or in the evaluator process.

Here, on the event loop, only what is known to be quick beforehand (`cost.py`): a check that takes
at most `HOOKLINE_MAX_SCHEMA_INLINE_MS`, of a call that has not used up that time, of a tenant that
has not used up its share of the loop. Violations are listed here under the same bound. All else
goes to the process, in one job a call; what is left unlisted when that is ended is marked as cut.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import jsonschema_rs
import orjson

from hookline_service.domain.limits import Limits
from hookline_service.schema.cost import STEPS_PER_MS, Cost, cost_of
from hookline_service.schema.evaluation import (
    LINEAR_PATTERNS,
    compile_schema,
    pattern_size,
    violations_of,
)
from hookline_service.schema.process import CPU_MS, EvaluatorProcess, Job

_LOOP_SHARE: Final = 0.1
"""The part of the event loop's time that one tenant may use in the long run."""
_MAX_TENANTS: Final = 10_000
_SCHEMA_BYTES: Final = 4_096
_BYTES_PER_TEXT_BYTE: Final = 36
_BYTES_PER_PATTERN_BYTE: Final = 3
"""The memory of a compiled schema, measured with jsonschema-rs: for 60 KB of text of eight shapes
11 to 34 bytes for each; for patterns, whose automata grow when they are used, up to twice their
size."""


class SchemaUnusableError(ValueError):
    """The text is no usable JSON Schema; `index` is the event's place in the call."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class OverBudgetError(Exception):
    """A check was ended since it exceeded a setting; `index` is the event's place in the call."""

    def __init__(self, index: int, setting: str, maximum: int) -> None:
        super().__init__(f"needs more than {setting} allows ({maximum:,})")
        self.index = index
        self.setting = setting
        self.maximum = maximum


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema's text and, where it has a bound, its validator."""

    text: str
    cost: Cost | None = None
    validator: jsonschema_rs.Validator | None = None
    quick_bytes: int = 0
    """Data of this size is certainly checked within the event loop's budget."""

    @property
    def memory_bytes(self) -> int:
        """About the memory that it takes."""
        text_bytes = sys.getsizeof(self.text)
        if self.cost is None:
            return _SCHEMA_BYTES + text_bytes
        compiled_bytes = _BYTES_PER_TEXT_BYTE * text_bytes
        return _SCHEMA_BYTES + compiled_bytes + _BYTES_PER_PATTERN_BYTE * self.cost.pattern_bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one event's data."""

    violations: Sequence[str]
    more: int = 0
    """Violations that are not listed."""
    is_cut: bool = False
    """They were not looked for: that could exceed the budget."""


class SchemaChecker:
    """Checks events of all tenants."""

    def __init__(self, limits: Limits, *, perf_s: Callable[[], float] = time.perf_counter) -> None:
        self._limits = limits
        self._inline_s = limits.max_schema_inline_ms / 1_000
        self._inline_steps = limits.max_schema_inline_ms * STEPS_PER_MS
        self._perf_s = perf_s
        self._shares = _Shares(self._inline_s)
        self._process = EvaluatorProcess(limits)

    async def stop(self) -> None:
        """End the evaluator process."""
        await self._process.stop()

    def read(self, text: str) -> Schema:
        """Read a schema that is stored. Raises `SchemaUnusableError` where that is seen here."""
        cost = cost_of(text, pattern_size, self._limits.max_json_depth)
        if cost is None:
            return Schema(text)
        try:
            validator = compile_schema(text, LINEAR_PATTERNS)
        except ValueError as error:
            raise SchemaUnusableError(str(error)) from error
        quick_bytes = self._inline_steps // (cost.per_value + cost.per_byte)
        return Schema(text, cost, validator, quick_bytes)

    def read_for(self, tenant_id: str, text: str) -> Schema | None:
        """Read a stored schema in the tenant's share of the event loop; None: it is used up.

        Raises `SchemaUnusableError`.
        """
        began_s = self._perf_s()
        if self._shares.left_s(tenant_id, began_s) <= 0.0:
            return None
        try:
            return self.read(text)
        finally:
            ended_s = self._perf_s()
            self._shares.use(tenant_id, ended_s - began_s, ended_s)

    async def try_out(self, text: str, example: bytes | None) -> Finding | None:
        """Check a schema that is to be stored, with its example.

        Raises `SchemaUnusableError`, `OverBudgetError`, and what `check` raises.
        """
        schema = self.read(text)
        if (
            schema.cost is not None
            and schema.cost.scalar > self._limits.max_schema_cpu_ms * STEPS_PER_MS
        ):
            raise self._over_budget(0, CPU_MS)
        data = b"null" if example is None else example
        if data.count(b"[") + data.count(b"{") > self._limits.max_json_depth:
            schema = Schema(text)  # an example may nest deeper than events may
        (finding,) = await self.check("", [(schema, data)])
        return None if example is None else finding

    async def check(
        self, tenant_id: str, events: Sequence[tuple[Schema, bytes]]
    ) -> list[Finding | None]:
        """Check each event's data, which is JSON, against its schema; None: it is valid.

        Raises `SchemaUnusableError`, `OverBudgetError`, `ResourceExhaustedError` and
        `UnavailableError`.
        """
        found: list[Finding | None] = [None] * len(events)
        elsewhere: list[int] = []
        began_s = now_s = self._perf_s()
        ends_s = began_s + self._shares.left_s(tenant_id, began_s)
        for index, (schema, data) in enumerate(events):
            validator, cost = schema.validator, schema.cost
            if (
                validator is None
                or cost is None
                or now_s >= ends_s
                or (len(data) > schema.quick_bytes and cost.to_check(data) > self._inline_steps)
            ):
                elsewhere.append(index)
                continue
            value = orjson.loads(data)
            if not validator.is_valid(value):
                if cost.to_explain(data) > self._inline_steps:
                    elsewhere.append(index)
                else:
                    found[index] = Finding(*violations_of(validator, value))
            now_s = self._perf_s()
        self._shares.use(tenant_id, now_s - began_s, now_s)
        if elsewhere:
            await self._check_elsewhere(tenant_id, events, elsewhere, found)
        return found

    async def _check_elsewhere(
        self,
        tenant_id: str,
        events: Sequence[tuple[Schema, bytes]],
        indexes: Sequence[int],
        found: list[Finding | None],
    ) -> None:
        job = Job([(events[index][0].text, events[index][1]) for index in indexes])
        answers = await self._process.run(tenant_id, job)
        invalid: list[int] = []
        for place, index in enumerate(indexes):
            if place == len(answers.lines):
                raise self._over_budget(index, answers.exceeded)
            answer = answers.lines[place]
            if "unusable" in answer:
                raise SchemaUnusableError(answer["unusable"], index)
            if not answer["valid"]:
                invalid.append(index)
        explained = answers.lines[len(indexes) :]
        for place, index in enumerate(invalid):
            if place < len(explained):
                answer = explained[place]
                found[index] = Finding(answer["violations"], answer["more"])
            else:
                found[index] = Finding((), is_cut=True)

    def _over_budget(self, index: int, setting: str) -> OverBudgetError:
        limits = self._limits
        is_time = setting == CPU_MS
        maximum = limits.max_schema_cpu_ms if is_time else limits.max_schema_memory_mb
        return OverBudgetError(index, setting, maximum)


class _Shares:
    """What each tenant may still use of the event loop: a bucket of `burst_s`, which fills."""

    def __init__(self, burst_s: float) -> None:
        self._burst_s = burst_s
        self._full_at_s: OrderedDict[str, float] = OrderedDict()

    def left_s(self, tenant_id: str, now_s: float) -> float:
        """The time that a call of the tenant may use now; not more than 0: none."""
        lacks_s = (self._full_at_s.get(tenant_id, now_s) - now_s) * _LOOP_SHARE
        return self._burst_s - max(lacks_s, 0.0)

    def use(self, tenant_id: str, used_s: float, now_s: float) -> None:
        """Count what a call has used."""
        full_at_s = max(self._full_at_s.pop(tenant_id, now_s), now_s)
        self._full_at_s[tenant_id] = full_at_s + used_s / _LOOP_SHARE
        if len(self._full_at_s) > _MAX_TENANTS:
            self._full_at_s.popitem(last=False)
