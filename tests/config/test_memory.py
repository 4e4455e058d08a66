"""The ceiling of a process: defaults fit it at every size, and what does not fit is named."""

from __future__ import annotations

import base64

import pytest

from hookline_service.config import Role, Settings, SettingsError
from hookline_service.config.memory import DEFAULT_MB, LEAST_MB

SERVE = {
    "HOOKLINE_DATABASE_URL": "postgresql://db/hookline",
    "HOOKLINE_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
}


def settings(**changes: object) -> Settings:
    variables = {f"HOOKLINE_{name}": str(value) for name, value in changes.items()}
    return Settings.from_environ(SERVE | variables, Role.SERVE)


@pytest.mark.parametrize("memory_mb", [LEAST_MB, 1_250, DEFAULT_MB, 2_000, 8_000, 1_048_576])
def test_defaults_fit_every_memory_limit(memory_mb: int) -> None:
    default, chosen = settings(), settings(MEMORY_MB=memory_mb)
    assert (chosen.max_calls >= default.max_calls) == (memory_mb >= DEFAULT_MB)
    bytes_of = (chosen.limits.max_request_bytes, default.limits.max_request_bytes)
    assert (bytes_of[0] >= bytes_of[1]) == (memory_mb >= DEFAULT_MB)


def test_bounds_beyond_the_memory_limit_are_named_with_a_remedy() -> None:
    with pytest.raises(SettingsError, match=r"MEMORY_MB is 1536.*comes to \d+ MB") as refused:
        settings(MAX_REQUEST_BYTES=1 << 30)
    assert "HOOKLINE_MAX_REQUEST_BYTES" in str(refused.value)
    needed_mb = str(refused.value).partition("set it to ")[2].partition(" ")[0]
    settings(MAX_REQUEST_BYTES=1 << 30, MAX_CALLS=1_024, MEMORY_MB=int(needed_mb) * 3)


def test_explicit_bound_is_not_derived() -> None:
    assert settings(MAX_CALLS=77, MEMORY_MB=4_000).max_calls == 77


def test_connections_to_the_database_do_not_count_as_pages_of_lists() -> None:
    assert settings(POOL_SIZE=90).limits.max_lists == settings().limits.max_lists
    with pytest.raises(SettingsError, match=r"pages of lists.*HOOKLINE_MAX_LISTS"):
        settings(MAX_LISTS=200)
