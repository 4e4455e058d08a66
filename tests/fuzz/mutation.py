r"""Inputs for fuzzing: the committed corpus, and what becomes of it when it is edited at random.

A line of `corpus/NAME.txt` is an input, its escapes as in Python (`\r`, `\x00`). Editing keeps
what makes an input interesting and breaks it elsewhere: pieces are cut out, doubled, moved between
inputs, and tokens of the grammar thrown in, which chance alone would never write.

A few hundred inputs of each kind are tried in the suite, many more by `make fuzz`, which keeps what
it finds under `.hypothesis` and tries it first the next time. It belongs into the corpus, with its
fix.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

T = TypeVar("T", str, bytes)
EXAMPLES = int(os.environ.get("HOOKLINE_TEST_FUZZ", "300"))
_CORPUS = Path(__file__).with_name("corpus")
_SPAN_MAX = 12
_PLACE_MAX = 1 << 16


def corpus(name: str) -> list[str]:
    """The inputs of `corpus/NAME.txt`, as text."""
    lines = (_CORPUS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [codecs.decode(line, "unicode_escape") for line in lines if line]


def bytes_corpus(name: str) -> list[bytes]:
    """The same as bytes."""
    return [line.encode("latin-1") for line in corpus(name)]


def edited(seeds: Sequence[T], tokens: Sequence[T]) -> st.SearchStrategy[T]:
    """Inputs made of seeds by up to six edits."""
    empty = seeds[0][:0]
    piece: st.SearchStrategy[T] = st.sampled_from(tokens) | st.builds(
        _span, st.sampled_from(seeds), st.integers(0, _PLACE_MAX), st.integers(1, _SPAN_MAX)
    )
    if isinstance(empty, str):
        piece |= st.text(max_size=3)
    else:
        piece |= st.binary(max_size=3)
    edit = st.tuples(st.integers(0, _PLACE_MAX), st.integers(0, _SPAN_MAX), st.just(empty) | piece)
    return st.builds(_apply, st.sampled_from(seeds), st.lists(edit, max_size=6))


def _span(seed: T, place: int, size: int) -> T:
    start = place % (len(seed) + 1)
    return seed[start : start + size]


def _apply(seed: T, edits: Sequence[tuple[int, int, T]]) -> T:
    """Each edit replaces `size` characters at a place."""
    for place, size, piece in edits:
        start = place % (len(seed) + 1)
        seed = seed[:start] + piece + seed[start + size :]
    return seed


def fuzz(
    given_first: Mapping[str, Sequence[object]] | None = None,
    **strategies: st.SearchStrategy[Any],
) -> Callable[[Any], Any]:
    """A property, for inputs of these strategies; `given_first` are tried first in each run."""

    def decorate(test: Any) -> Any:  # noqa: ANN401 - whatever hypothesis decorates
        for name, values in (given_first or {}).items():
            for value in values:
                test = example(**{name: value})(test)
        return settings(
            max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture]
        )(given(**strategies)(test))

    return decorate
