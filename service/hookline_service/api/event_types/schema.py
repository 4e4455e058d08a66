"""Validation of the JSON Schemas of event types and their examples.

Nothing is fetched: a reference can point into the schema itself and to the schemas of the drafts
only. The schema is compiled by the checker that publishing uses, with the same limits: a schema
that cannot be compiled within them is rejected.
"""

from __future__ import annotations

import orjson

from hookline_service.domain.errors import Reason, Violation
from hookline_service.schema.checker import OverBudgetError, SchemaChecker, SchemaUnusableError

_SHOWN_LENGTH_MAX = 200
_SCHEMA = "event_type.json_schema"
_EXAMPLE = "event_type.example_json"


async def check_schema(
    json_schema: str, example_json: str, checker: SchemaChecker, violations: list[Violation]
) -> None:
    """Check a schema, and its example against it; either may be empty."""
    schema_problem = _not_a_schema(json_schema)
    example_problem = _not_json(example_json)
    if schema_problem:
        violations.append(Violation(_SCHEMA, schema_problem, Reason.SCHEMA_INVALID))
    if example_problem:
        violations.append(Violation(_EXAMPLE, example_problem, Reason.SCHEMA_INVALID))
    if schema_problem or not json_schema:
        return
    example = example_json.encode() if example_json and not example_problem else None
    try:
        finding = await checker.try_out(json_schema, example)
    except SchemaUnusableError as error:
        text = f"is not a usable JSON Schema: {_first_line(error)}"
        violations.append(Violation(_SCHEMA, text, Reason.SCHEMA_INVALID))
    except OverBudgetError as error:
        text = f"is too expensive to validate: it {error}; use less nesting and fewer references"
        limit = Violation(_SCHEMA, text, Reason.LIMIT_EXCEEDED, error.setting, error.maximum)
        violations.append(limit)
    else:
        if finding is not None:
            first = finding.violations[0] if finding.violations else "too many violations to list"
            text = f"does not satisfy the schema: {first[:_SHOWN_LENGTH_MAX]}"
            violations.append(Violation(_EXAMPLE, text, Reason.SCHEMA_INVALID))


def _not_a_schema(text: str) -> str:
    if problem := _not_json(text):
        return problem
    if text and not isinstance(orjson.loads(text), dict | bool):
        return "must be a JSON object, true or false"
    return ""


def _not_json(text: str) -> str:
    try:
        if text:
            orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"is not valid JSON: see line {error.lineno}, column {error.colno}"
    return ""


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    # The error that rejects a fetch is wrapped by the library, with its class name before the text.
    return text.rpartition("ValueError: ")[2][:_SHOWN_LENGTH_MAX]
