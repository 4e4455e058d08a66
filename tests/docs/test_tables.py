"""Figures, settings, states and log events in the docs and in the contract match the code."""

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
from tests.protos import contract

LIMITS = Limits()
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
    """Return the settings, or all problems of them."""
    try:
        return Settings.from_environ(environ, role)
    except SettingsError as error:
        return error.problems


def test_every_setting_is_in_the_table_once() -> None:
    named = [name for row in SETTINGS for name in in_backticks(row[0])]
    assert sorted(named) == sorted(Settings.variables())


def test_every_other_variable_is_documented_below_the_table() -> None:
    below = page("docs/settings.md").text.rpartition("\n|")[2]
    documented = set(re.findall(r"HOOKLINE_\w+", below))
    assert documented >= NOT_OURS - {"HOOKLINE_TEST_DATABASE"}


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0])
def test_documented_default_applies_when_the_variable_is_unset(row: list[str]) -> None:
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
    """Return whether a value is allowed by itself, ignoring conflicts with other settings."""
    result = outcome({name: value}, Role.DEV)
    return isinstance(result, Settings) or not any("must be" in problem for problem in result)


@pytest.mark.parametrize(
    "row", [row for row in SETTINGS if re.match(r"`[\d.]+` to `", row[2])], ids=lambda row: row[0]
)
def test_documented_bounds_are_enforced(row: list[str]) -> None:
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
def test_documented_choices_are_accepted(row: list[str]) -> None:
    ((name,), choices) = in_backticks(row[0]), in_backticks(row[2])
    assert [choice for choice in choices if not is_within_bounds(name, choice)] == []
    assert not is_within_bounds(name, "nonsense")


@pytest.mark.parametrize(
    "element, figure, bound",
    [
        ("Event.data", "at most {} KiB", LIMITS.max_data_bytes // 1024),
        ("Event.attributes", "a value has at most {} KiB", LIMITS.max_attribute_bytes // 1024),
        ("Event.attributes", "At most {}", MAX_ATTRIBUTES),
        ("Event.json_data", "nesting deeper than {}", LIMITS.max_json_depth),
        ("PublishEventsRequest.events", "1 to {:,} events", LIMITS.max_batch_events),
        ("PublishEventsRequest.events", "has at most {} MiB", LIMITS.max_batch_bytes // 1024**2),
        ("EventType.json_schema", "At most {} KiB", LIMITS.max_schema_bytes // 1024),
        ("Subscription.event_types", "1 to {} patterns", LIMITS.max_patterns),
        ("Subscription.labels", "At most {}", LIMITS.max_labels),
        ("Tenant.labels", "At most {}", LIMITS.max_labels),
        ("ListTenantsRequest.page_size", "0 means {}", LIMITS.default_page_size),
        ("ListTenantsRequest.page_size", "above {0:,} is reduced to {0:,}", LIMITS.max_page_size),
        ("ListTenantsResponse.tenants", "at most {} MiB", LIMITS.max_page_bytes // 1024**2),
        ("DeliveryLimits.max_per_second", "{} to 100,000", 0.001),
        ("DeliveryLimits.max_in_flight", "1 to {:,}", MAX_IN_FLIGHT),
        ("DeliveryLimits.max_in_flight", "Default: 0, which means {}", DEFAULT_MAX_IN_FLIGHT),
        ("RetryPolicy", "there are {} attempts", len(DEFAULT_DELAYS_S)),
        ("HttpTarget.timeout", "1 to {:.0f} seconds", MAX_TIMEOUT_S),
        ("HttpTarget.timeout", "Default: {:.0f} seconds", DEFAULT_TIMEOUT_S),
    ],
)
def test_bound_in_a_comment_of_the_contract_is_the_default(
    element: str, figure: str, bound: float
) -> None:
    """Compare the figure with its unit and its role: minimum, maximum or default."""
    (comment,) = {each.comment for each in contract.elements() if each.name == element}
    written = re.escape(figure.format(bound))
    assert re.search(rf"(?<![\d.,]){written}(?![\d]|[.,]\d)", " ".join(comment.split()))


def test_documented_connections_of_a_node_are_the_sessions_that_it_opens() -> None:
    sessions = re.findall(
        r'\bsession\("', text(pathlib.PurePosixPath("service/hookline_service/app/engine.py"))
    )
    assert len(sessions) == SESSIONS
    formula = rf"`HOOKLINE_POOL_SIZE` \+ `HOOKLINE_PATH_POOL_SIZE` \+ {SESSIONS}\b"
    assert re.search(formula, page("docs/production.md").on_one_line)
    assert f"a node has {SESSIONS} of its own" in page("docs/settings.md").on_one_line


def test_every_delivery_state_and_its_exits_are_documented() -> None:
    rows = {row[0]: row[2] for row in OPERATING.table("States and outcomes of a delivery")}
    assert set(rows) == set(DeliveryState)
    for state, exits in rows.items():
        can_be_retried = (DeliveryState(state), Trigger.RETRIED) in TRANSITIONS
        assert ("RetryDelivery" in exits) == can_be_retried


def test_every_attempt_outcome_is_documented() -> None:
    _, _, below = OPERATING.text.partition("## States and outcomes of a delivery\n")
    section = below.partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_]+) \|", section, re.MULTILINE)
    assert rows == [*DeliveryState, *AttemptOutcome]


def test_documented_retry_schedule_is_the_default() -> None:
    match = re.search(r"there are (\d+) attempts: after (.*?), each", OPERATING.on_one_line)
    assert match is not None
    delays = re.findall(r"(\d+) (s|min|h)", match[2])
    assert [int(n) * _UNITS_S[unit] for n, unit in delays] == list(DEFAULT_DELAYS_S)
    assert int(match[1]) == len(DEFAULT_DELAYS_S)


def test_documented_log_events_are_those_that_the_code_logs() -> None:
    rows = OPERATING.table("Monitoring")
    documented = {event for row in rows for event in in_backticks(row[0])}
    service = "\n".join(text(path) for path in python_files() if path.parts[0] == "service")
    assert len(documented) > 10
    assert {event for event in documented if f'"{event}"' not in service} == set()
    logged = set(re.findall(r'_log\.(?:warning|error)\(\s*"(\w+)"', service))
    assert logged - documented == set()
