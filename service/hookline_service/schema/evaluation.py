"""Compiles schemas, checks data against them, and lists where data breaks them.

This file is also the program of the evaluator process (`process.py`), which is started by its path:
so it imports nothing of the service. There each job is stopped by the kernel once it has used the
processor time or the memory that it may use; the process ends, and what it had answered counts.

A job on standard input is a header, preceded by its length in four bytes (big-endian), and then the
events' data, one after another. The header is JSON:

    {"schemas": [TEXT, ...], "events": [[SCHEMA, LENGTH], ...], "cpu_s": SECONDS}

An answer on standard output is a line of JSON. First one for each event, in order:
`{"valid": BOOL}`, or `{"unusable": REASON}`, which is the last; then for each event that is not
valid, in order, `{"violations": [TEXT, ...], "more": COUNT}`; then `{"done": true, "is_last":
BOOL}`: whether the process ends now, since it has grown.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NoReturn

import jsonschema_rs
import orjson

MAX_LISTED: Final = 5
"""Violations of one event that are listed; the others are counted."""
_MAX_VIOLATION_LENGTH: Final = 300
_MAX_PATTERN_BYTES: Final = 256 * 1024
_DFA_CACHE_BYTES: Final = 256 * 1024
_MAX_COMPILED: Final = 32
_MIB: Final = 1024 * 1024

LINEAR_PATTERNS: Final = jsonschema_rs.RegexOptions(
    size_limit=_MAX_PATTERN_BYTES, dfa_size_limit=_DFA_CACHE_BYTES
)
"""Patterns that take time in proportion to the text: neither lookaround nor backreferences."""


def compile_schema(
    json_schema: str,
    patterns: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions | None = None,
) -> jsonschema_rs.Validator:
    """Return a validator that fetches nothing; raises `ValueError` for what is no JSON Schema.

    `patterns`: the regular expressions to allow; None: all, which is for the evaluator process.
    """
    try:
        return jsonschema_rs.validator_for(
            orjson.loads(json_schema),
            retriever=_refuse_to_fetch,
            validate_formats=False,
            pattern_options=patterns,
        )
    except (orjson.JSONDecodeError, jsonschema_rs.ValidationError) as error:
        raise ValueError(str(error)) from error


def pattern_size(pattern: str) -> int | None:
    """Return the size of a pattern's automaton in bytes, rounded up.

    None: it is too large, or the pattern has none, since it may backtrack.
    """
    size = 4 * 1024
    while size <= _MAX_PATTERN_BYTES:
        options = jsonschema_rs.RegexOptions(size_limit=size, dfa_size_limit=_DFA_CACHE_BYTES)
        try:
            jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=options)
        except ValueError:
            size *= 4
        else:
            return size
    return None


def _refuse_to_fetch(uri: str) -> NoReturn:
    raise ValueError(f"schemas may not refer to other documents: {uri}")


def violations_of(validator: jsonschema_rs.Validator, data: Any) -> tuple[list[str], int]:  # noqa: ANN401 - any JSON
    """Return the first violations, each with its path, and how many more there are.

    The validator finds all of them before it returns the first.
    """
    listed: list[str] = []
    more = 0
    for error in validator.iter_errors(data):
        if len(listed) == MAX_LISTED:
            more += 1
            continue
        path = "".join(f"[{step!r}]" for step in error.instance_path)
        listed.append(f"{path or 'the value'}: {error.message}"[:_MAX_VIOLATION_LENGTH])
    return listed, more


# ------------------------------------------------------------------------- the evaluator process


class _Compiled:
    """The validators of the latest jobs, by the schema's text."""

    def __init__(self) -> None:
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def get(self, text: str) -> jsonschema_rs.Validator:
        """Return the validator of a schema. Raises `ValueError`."""
        validator = self._validators.pop(text, None) or compile_schema(text)
        self._validators[text] = validator
        if len(self._validators) > _MAX_COMPILED:
            del self._validators[next(iter(self._validators))]
        return validator


def main(memory_mib: int) -> None:
    """Answer jobs until standard input ends."""
    _limit_resources(memory_mib)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    compiled = _Compiled()
    while len(prefix := source.read(4)) == 4:  # noqa: PLR2004 - bytes of a length
        header = orjson.loads(source.read(int.from_bytes(prefix, "big")))
        texts = [source.read(length) for _, length in header["events"]]
        signal.setitimer(signal.ITIMER_PROF, header["cpu_s"])
        for answer in _answers(header, texts, compiled):
            _write(sink, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        # The next job finds at least half of its memory free, if need be in a new process.
        is_last = _address_space_bytes() > memory_mib * _MIB // 2
        _write(sink, {"done": True, "is_last": is_last})
        if is_last:
            return


def _address_space_bytes() -> int:
    """Return what RLIMIT_AS limits, as it is now; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib takes 10 ms to import
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _answers(
    header: dict[str, Any], texts: list[bytes], compiled: _Compiled
) -> Iterator[dict[str, Any]]:
    wrong: list[tuple[jsonschema_rs.Validator, bytes]] = []
    for (schema, _), text in zip(header["events"], texts, strict=True):
        try:
            validator = compiled.get(header["schemas"][schema])
        except ValueError as error:
            yield {"unusable": str(error)[:_MAX_VIOLATION_LENGTH]}
            return
        is_valid = validator.is_valid(orjson.loads(text))
        if not is_valid:
            wrong.append((validator, text))
        yield {"valid": is_valid}
    for validator, text in wrong:
        listed, more = violations_of(validator, orjson.loads(text))
        yield {"violations": listed, "more": more}


def _write(sink: BinaryIO, answer: dict[str, Any]) -> None:
    sink.write(orjson.dumps(answer) + b"\n")
    sink.flush()


def _limit_resources(memory_mib: int) -> None:
    """Limit memory, forbid core dumps and files, let go of all descriptors but the three."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for name, limit in (
        (resource.RLIMIT_AS, memory_mib * _MIB),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(name, (limit, limit))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except MemoryError:
        os._exit(1)
