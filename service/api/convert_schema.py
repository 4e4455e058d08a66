"""JSON Schemas of event types, and their examples: whether they are what they say.

Nothing is fetched: a reference may lead into the schema itself and to the drafts' own schemas, and
nowhere else. How a schema is read is `pipeline/catalog.py`'s, so that what is accepted here is what
publishing checks by.
"""

from __future__ import annotations

import jsonschema_rs
import orjson

from service.domain.errors import Reason, Violation
from service.pipeline.catalog import compile_schema

_SHOWN_LENGTH_MAX = 200


def check_schema(
    text: str, field: str, violations: list[Violation]
) -> jsonschema_rs.Validator | None:
    """The validator of a schema; None where there is none, or where something is wrong with it."""
    if not text:
        return None
    try:
        is_schema = isinstance(orjson.loads(text), dict | bool)
        problem = "must be a JSON object, true or false"
        if is_schema:  # a string would be read as the text of a schema once more
            return compile_schema(text)
    except orjson.JSONDecodeError as error:
        problem = f"is no JSON text: look at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        problem = f"is no usable JSON Schema: {_first_line(error)}"
    violations.append(Violation(field, problem, Reason.SCHEMA_INVALID))
    return None


def check_example(
    text: str,
    validator: jsonschema_rs.Validator | None,
    field: str,
    violations: list[Violation],
) -> None:
    """Whether an example is JSON and satisfies the schema, if there is one."""
    if not text:
        return
    try:
        example = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = f"is no JSON text: look at line {error.lineno}, column {error.colno}"
        violations.append(Violation(field, problem, Reason.SCHEMA_INVALID))
        return
    if validator is None:
        return
    try:
        validator.validate(example)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        problem = f"does not satisfy the schema: {_first_line(error)}"
        violations.append(Violation(field, problem, Reason.SCHEMA_INVALID))


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    # What we raised when asked to fetch something comes back wrapped, with its class before it.
    return text.rpartition("ValueError: ")[2][:_SHOWN_LENGTH_MAX]
