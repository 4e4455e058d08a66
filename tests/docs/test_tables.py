"""The figures and words of the pages, and the contract's bounds, are those of the code."""

import base64
import pathlib
import re

import pytest

from hookline_service.app.engine import SESSIONS
from hookline_service.config import Role, Settings, SettingsError
from hookline_service.config.reading import NOT_OURS
from hookline_service.config.settings import available_cores
from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import TRANSITIONS, DeliveryState, Trigger
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import MAX_ATTRIBUTES
from hookline_service.domain.retry import DEFAULT_DELAYS_S
from hookline_service.domain.subscription import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_TIMEOUT_S,
    MAX_IN_FLIGHT,
    MAX_TIMEOUT_S,
)
from tests.architecture.repository import python_files, text
from tests.docs.pages import page

LIMITS = Limits()
PROTOS = pathlib.PurePosixPath("protos/hookline/v1")
OPERATING = page("docs/operating.md")
SETTINGS = page("docs/settings.md").table("Settings")
SERVE = {
    "HOOKLINE_DATABASE_URL": "postgresql://db/hookline",
    "HOOKLINE_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
    "HOOKLINE_AUTH": "off",
}
_UNITS_S = {"s": 1, "min": 60, "h": 3_600}


def in_backticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def outcome(environ: dict[str, str], role: Role) -> Settings | tuple[str, ...]:
    """What settings come to: what they are, or all that is wrong with them."""
    try:
        return Settings.from_environ(environ, role)
    except SettingsError as error:
        return error.problems


def test_every_setting_is_in_the_table_once() -> None:
    named = [name for row in SETTINGS for name in in_backticks(row[0])]
    assert sorted(named) == sorted(Settings.variables())


def test_every_variable_that_is_no_setting_is_told_below_the_table() -> None:
    below = page("docs/settings.md").text.rpartition("\n|")[2]
    told = set(re.findall(r"HOOKLINE_\w+", below))
    assert told >= NOT_OURS - {"HOOKLINE_TEST_DATABASE"}


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0])
def test_a_default_is_what_holds_where_nothing_is_set(row: list[str]) -> None:
    (name, *_), defaults = in_backticks(row[0]), in_backticks(row[1])
    if not defaults:
        assert row[1] == "unset"
        return
    for_serve, for_dev = defaults[0], defaults[-1]
    if row[1].startswith("one a core"):
        for_serve = str(available_cores())
    unset = {key: value for key, value in SERVE.items() if key != name}
    assert outcome(unset | {name: for_serve}, Role.SERVE) == outcome(unset, Role.SERVE)
    assert outcome({name: for_dev}, Role.DEV) == outcome({}, Role.DEV)
    assert isinstance(outcome(unset | {name: for_serve}, Role.SERVE), Settings)


def is_within_bounds(name: str, value: str) -> bool:
    """Whether a value is allowed by itself; what it contradicts is another matter."""
    told = outcome({name: value}, Role.DEV)
    return isinstance(told, Settings) or not any("must be" in problem for problem in told)


@pytest.mark.parametrize(
    "row", [row for row in SETTINGS if re.match(r"`[\d.]+` to `", row[2])], ids=lambda row: row[0]
)
def test_what_is_allowed_ends_where_the_table_says(row: list[str]) -> None:
    (name,), (low, high) = in_backticks(row[0]), in_backticks(row[2])
    assert is_within_bounds(name, low)
    assert is_within_bounds(name, high)
    assert not is_within_bounds(
        name, f"{float(low) - 0.001:g}" if "." in low else str(int(low) - 1)
    )
    assert not is_within_bounds(name, str(int(high) + 1))


@pytest.mark.parametrize(
    "row", [row for row in SETTINGS if re.fullmatch(r"`\w+`(, `\w+`)+", row[2])], ids=lambda r: r[0]
)
def test_words_that_the_table_allows_are_read(row: list[str]) -> None:
    ((name,), words) = in_backticks(row[0]), in_backticks(row[2])
    assert [word for word in words if not is_within_bounds(name, word)] == []
    assert not is_within_bounds(name, "nonsense")


@pytest.mark.parametrize(
    "proto, said, bound",
    [
        ("event", "What there is to say about it, at most {} KiB", LIMITS.max_data_bytes // 1024),
        ("event", "values at most\n  // {} KiB", LIMITS.max_attribute_bytes // 1024),
        ("event", "nesting deeper than {}.", LIMITS.max_json_depth),
        ("event", "At most {}; names\n  // `[a-z0-9]{{1,64}}`", MAX_ATTRIBUTES),
        ("event_service", "1 to {:,} events; the request", LIMITS.max_batch_events),
        ("event_service", "the request has {} MiB at most", LIMITS.max_batch_bytes // 1024**2),
        (
            "event_type",
            "references stay within it. At most {} KiB",
            LIMITS.max_schema_bytes // 1024,
        ),
        ("subscription", "1 to {} patterns", LIMITS.max_patterns),
        ("subscription", "own marks, to filter by. At most {};", LIMITS.max_labels),
        ("tenant", "own marks, to filter by. At most {};", LIMITS.max_labels),
        ("tenant_service", "0 means {}; above", LIMITS.default_page_size),
        ("tenant_service", "above {:,} counts as", LIMITS.max_page_size),
        ("tenant_service", "A page also ends at {} MiB", LIMITS.max_page_bytes // 1024**2),
        ("policy", "{} to 100,000. Default: 0, no limit", 0.001),
        ("policy", "1 to {:,}. Default: 0, which means 64", MAX_IN_FLIGHT),
        ("policy", "Default: 0, which means {}.", DEFAULT_MAX_IN_FLIGHT),
        ("policy", "With nothing\n// set there are {} attempts", len(DEFAULT_DELAYS_S)),
        ("target", "1 to {:.0f} seconds", MAX_TIMEOUT_S),
        ("target", "Default: {:.0f} seconds", DEFAULT_TIMEOUT_S),
    ],
)
def test_a_bound_that_the_contract_tells_is_the_default(
    proto: str, said: str, bound: float
) -> None:
    assert said.format(bound) in text(PROTOS / f"{proto}.proto")


def test_a_node_has_as_many_connections_as_is_said() -> None:
    sessions = re.findall(
        r'\bsession\("', text(pathlib.PurePosixPath("service/hookline_service/app/engine.py"))
    )
    assert len(sessions) == SESSIONS
    said = f"`HOOKLINE_POOL_SIZE` + `HOOKLINE_PATH_POOL_SIZE` + {SESSIONS} connections"
    assert said in page("docs/production.md").text
    assert "a node has ten of its own" in page("docs/settings.md").text


def test_every_state_and_every_way_out_of_it_is_told() -> None:
    rows = {row[0]: row[2] for row in OPERATING.table("What becomes of a delivery")}
    assert set(rows) == set(DeliveryState)
    for state, ways in rows.items():
        can_be_retried = (DeliveryState(state), Trigger.RETRIED) in TRANSITIONS
        assert ("RetryDelivery" in ways) == can_be_retried


def test_every_outcome_of_an_attempt_is_told() -> None:
    rows = OPERATING.table("What becomes of a delivery")
    _, _, below = OPERATING.text.partition("What an attempt comes to:")
    told = re.findall(r"^\| ([A-Z_]+) \|", below.partition("**The schedule.**")[0], re.MULTILINE)
    assert rows
    assert told == list(AttemptOutcome)


def test_the_schedule_is_the_one_that_is_kept() -> None:
    match = re.search(r"there are (\d+) attempts: after (.*?), each", OPERATING.text, re.DOTALL)
    assert match is not None
    delays = re.findall(r"(\d+) (s|min|h)", match[2])
    assert [int(n) * _UNITS_S[unit] for n, unit in delays] == list(DEFAULT_DELAYS_S)
    assert int(match[1]) == len(DEFAULT_DELAYS_S)


def test_every_warning_of_the_log_is_explained_and_none_that_there_is_not() -> None:
    rows = OPERATING.table("What to watch")
    told = {event for row in rows for event in in_backticks(row[0])}
    service = "\n".join(text(path) for path in python_files() if path.parts[0] == "service")
    assert len(told) > 10
    assert {event for event in told if f'"{event}"' not in service} == set()
    warned = set(re.findall(r'_log\.(?:warning|error)\(\s*"(\w+)"', service))
    assert warned - told == set()
