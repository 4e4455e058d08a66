"""The settings: HOOKLINE_* read once, checked against one another, then frozen.

All invalid settings are reported at once, each with the variable's name and the allowed values. An
unknown HOOKLINE_ variable is rejected, since a misspelt setting would have no effect. Secret values
(the database's URL contains a password) appear neither in messages nor in the repr of `Settings`.

Owns the name, default and bounds of each setting. Must not depend on its users, nor on the API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hookline_service.config import memory
from hookline_service.config.egress import EgressSettings, read_egress
from hookline_service.config.limits import limit_contradictions, read_limits
from hookline_service.config.otel import read_prometheus, read_telemetry
from hookline_service.config.reading import (
    ListenAddress,
    Reader,
    integer,
    number,
    one_of,
    parse_address,
    parse_database_url,
    parse_keys,
    parse_path,
    switch,
)
from hookline_service.config.secret_sources import COMMAND_TIMEOUT_S
from hookline_service.config.tls import TlsSettings, read_tls
from hookline_service.config.tokens import TokenSettings, read_tokens
from hookline_service.domain.limits import Limits
from hookline_service.domain.subscription import MAX_TIMEOUT_S
from hookline_service.pipeline.publishing.contended import TURNS_PER_WAIT
from hookline_service.telemetry import LogFormat, LogLevel
from hookline_service.telemetry.settings import TelemetrySettings

_MIB = 1024 * 1024
_TO_4_GIB = integer(_MIB, 4096 * _MIB, "bytes")


class Role(StrEnum):
    """What the process is started for; it decides what is required and what is the default."""

    DEV = "dev"
    SERVE = "serve"
    MIGRATE = "migrate"
    KEYS = "keys"
    FORGET = "forget"
    AUDIT = "audit"


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SettingsError(Exception):
    """Settings that cannot be used; `problems` has a sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that can be set. Each field's comment names its variable; see docs/settings.md."""

    role: Role
    listen: ListenAddress
    """HOOKLINE_LISTEN"""
    database_url: str | None = field(repr=False)
    """HOOKLINE_DATABASE_URL; None: an embedded Postgres in `data_dir`"""
    data_dir: Path
    """HOOKLINE_DATA_DIR"""
    workers: int
    """HOOKLINE_WORKERS: processes behind one port, each a node"""
    worker_silence_s: int
    """HOOKLINE_WORKER_SILENCE_S: a process silent for so long is killed and replaced; 0: none is"""
    lease_s: float
    """HOOKLINE_LEASE_S: others take over a dead node's work after it"""
    egress: EgressSettings
    """What deliveries may reach, and by which way"""
    is_https_only: bool
    """HOOKLINE_HTTPS_ONLY: refuse `http://` targets"""
    master_keys: tuple[bytes, ...] = field(repr=False)
    """HOOKLINE_MASTER_KEY; empty: one that is kept in `data_dir`"""
    are_core_dumps_allowed: bool
    """HOOKLINE_ALLOW_CORE_DUMPS: also debuggers of the same user"""
    is_auth_on: bool
    """HOOKLINE_AUTH"""
    tls: TlsSettings
    tokens: TokenSettings
    retention_days: int
    """HOOKLINE_RETENTION_DAYS: events and finished deliveries"""
    pending_retention_days: int
    """HOOKLINE_PENDING_RETENTION_DAYS: pending deliveries, those of paused subscriptions too"""
    tombstone_retention_days: int
    """HOOKLINE_TOMBSTONE_RETENTION_DAYS: rows of deleted subscriptions and tenants"""
    audit_retention_days: int
    """HOOKLINE_AUDIT_RETENTION_DAYS: entries of the audit log; 0: they are kept for good"""
    disable_after_days: float
    """HOOKLINE_DISABLE_AFTER_DAYS: of failures without one success"""
    is_strict_about_event_types: bool
    """HOOKLINE_STRICT_EVENT_TYPES: refuse events of unregistered types"""
    statement_timeout_s: float
    """HOOKLINE_STATEMENT_TIMEOUT_S: what a statement may take before its connection is given up"""
    pool_size: int
    """HOOKLINE_POOL_SIZE: connections for API calls"""
    path_pool_size: int
    """HOOKLINE_PATH_POOL_SIZE: connections for what the data path reads now and then"""
    publish_lock_wait_s: float
    """HOOKLINE_PUBLISH_LOCK_WAIT_S: how long a publish waits for another transaction's lock"""
    memory_mb: int
    """HOOKLINE_MEMORY_MB: the ceiling of one process, from which bounds derive"""
    max_in_flight: int
    """HOOKLINE_MAX_IN_FLIGHT: deliveries sent and not yet recorded, of one node"""
    max_calls: int
    """HOOKLINE_MAX_CALLS: calls that run at once, of one node"""
    max_cached_keys: int
    """HOOKLINE_MAX_CACHED_KEYS: API keys that a node remembers, and bad ones besides"""
    max_queued_deliveries: int
    """HOOKLINE_MAX_QUEUED_DELIVERIES: in memory, of one node; others wait in Postgres"""
    max_queued_delivery_bytes: int
    """HOOKLINE_MAX_QUEUED_DELIVERY_BYTES: the data of these"""
    max_index_bytes: int
    """HOOKLINE_MAX_INDEX_BYTES: subscriptions in memory to match events by, of one node"""
    max_lane_bytes: int
    """HOOKLINE_MAX_LANE_BYTES: of the subscriptions that a node has in memory, about"""
    max_schema_cache_bytes: int
    """HOOKLINE_MAX_SCHEMA_CACHE_BYTES: JSON Schemas in memory to check events by, of one node"""
    stop_grace_s: float
    """HOOKLINE_STOP_GRACE_S: what a clean stop may wait for calls and deliveries under way"""
    log_format: LogFormat
    """HOOKLINE_LOG_FORMAT"""
    log_level: LogLevel
    """HOOKLINE_LOG_LEVEL"""
    telemetry: TelemetrySettings
    """OTEL_*, and HOOKLINE_PROMETHEUS_LISTEN and those after it: the port that is scraped"""
    limits: Limits

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], role: Role, flags: Mapping[str, str | None] | None = None
    ) -> Settings:
        """Read HOOKLINE_*; raises `SettingsError` with everything that is wrong.

        `flags` are variables that the command line gave (`{"LISTEN": "127.0.0.1:0"}`), which count
        more than the environment's; None for those that it did not give.
        """
        read = Reader(environ, flags or {})
        settings = cls._read(read, role)
        # Contradictions are reported only if all values could be read.
        problems = [*read.problems, *read.unknown()] or settings.contradictions()
        if problems:
            raise SettingsError(problems)
        return settings

    @classmethod
    def variables(cls) -> frozenset[str]:
        """The names of all variables."""
        read = Reader({}, {})
        cls._read(read, Role.DEV)
        return frozenset(read.names)

    @classmethod
    def _read(cls, read: Reader, role: Role) -> Settings:
        is_dev = role is Role.DEV
        read.command_timeout_s = read(
            "SECRET_COMMAND_TIMEOUT_S", number(1, 300, "seconds"), COMMAND_TIMEOUT_S
        )
        memory_mb = read("MEMORY_MB", integer(memory.LEAST_MB, 1_048_576), memory.DEFAULT_MB)

        def fitting(default: int, most: int) -> int:
            return min(most, memory.scaled(default, memory_mb))

        return cls(
            role=role,
            memory_mb=memory_mb,
            listen=read("LISTEN", parse_address, ListenAddress("127.0.0.1", 50051)),
            database_url=read.secret("DATABASE_URL", parse_database_url, None),
            data_dir=read("DATA_DIR", parse_path, Path(".hookline")),
            workers=read(
                "WORKERS", integer(1, 256), available_cores() if role is Role.SERVE else 1
            ),
            worker_silence_s=read("WORKER_SILENCE_S", integer(0, 3_600, "seconds"), 20),
            lease_s=read("LEASE_S", number(4, 300, "seconds"), 10.0),
            egress=read_egress(read, fitting, is_dev=is_dev),
            is_https_only=read("HTTPS_ONLY", switch, default=False),
            master_keys=read.secret(
                "MASTER_KEY", parse_keys, (), is_wanted=role is not Role.MIGRATE
            ),
            are_core_dumps_allowed=read("ALLOW_CORE_DUMPS", switch, default=False),
            is_auth_on=read("AUTH", switch, default=not is_dev),
            tls=read_tls(read),
            tokens=read_tokens(read),
            retention_days=read("RETENTION_DAYS", integer(5, 3_650, "days"), 30),
            pending_retention_days=read("PENDING_RETENTION_DAYS", integer(1, 3_650, "days"), 30),
            tombstone_retention_days=read(
                "TOMBSTONE_RETENTION_DAYS", integer(1, 3_650, "days"), 30
            ),
            audit_retention_days=read("AUDIT_RETENTION_DAYS", integer(0, 36_500, "days"), 0),
            disable_after_days=read("DISABLE_AFTER_DAYS", number(0.01, 365, "days"), 5.0),
            is_strict_about_event_types=read("STRICT_EVENT_TYPES", switch, default=False),
            statement_timeout_s=read("STATEMENT_TIMEOUT_S", number(1, 300, "seconds"), 10.0),
            pool_size=read("POOL_SIZE", integer(2, 100), 8),
            path_pool_size=read("PATH_POOL_SIZE", integer(1, 100), 2),
            publish_lock_wait_s=read("PUBLISH_LOCK_WAIT_S", number(0.1, 60, "seconds"), 2.0),
            max_in_flight=read("MAX_IN_FLIGHT", integer(1, 20_000), fitting(2_000, 20_000)),
            max_calls=read("MAX_CALLS", integer(1, 100_000), fitting(1_024, 100_000)),
            max_cached_keys=read("MAX_CACHED_KEYS", integer(100, 1_000_000), 10_000),
            max_queued_deliveries=read(
                "MAX_QUEUED_DELIVERIES", integer(100, 10_000_000), fitting(50_000, 10_000_000)
            ),
            max_queued_delivery_bytes=read(
                "MAX_QUEUED_DELIVERY_BYTES", _TO_4_GIB, fitting(64 * _MIB, 4096 * _MIB)
            ),
            max_index_bytes=read(
                "MAX_INDEX_BYTES",
                integer(_MIB, 65_536 * _MIB, "bytes"),
                fitting(96 * _MIB, 65_536 * _MIB),
            ),
            max_lane_bytes=read("MAX_LANE_BYTES", _TO_4_GIB, fitting(64 * _MIB, 4096 * _MIB)),
            max_schema_cache_bytes=read(
                "MAX_SCHEMA_CACHE_BYTES", _TO_4_GIB, fitting(32 * _MIB, 4096 * _MIB)
            ),
            stop_grace_s=read("STOP_GRACE_S", number(0, 600, "seconds"), MAX_TIMEOUT_S + 5),
            log_format=read(
                "LOG_FORMAT", one_of(LogFormat), LogFormat.CONSOLE if is_dev else LogFormat.JSON
            ),
            log_level=read(
                "LOG_LEVEL", one_of(LogLevel), LogLevel.WARNING if is_dev else LogLevel.INFO
            ),
            telemetry=read_telemetry(read.environ, read.problems, read_prometheus(read)),
            limits=read_limits(read, fitting),
        )

    @property
    def identity_settings(self) -> Sequence[str]:
        """The variables by which callers are known."""
        known = {
            "HOOKLINE_TLS_CLIENTS": self.tls.clients,
            "HOOKLINE_JWT_ISSUER": self.tokens.rules,
        }
        return [name for name, value in known.items() if value is not None]

    def contradictions(self) -> list[str]:
        """Where settings that are right by themselves do not go together."""
        if self.role is Role.AUDIT:
            return []
        problems: list[str] = []
        if self.role is not Role.DEV and self.database_url is None:
            problems.append(
                "HOOKLINE_DATABASE_URL is not set, nor HOOKLINE_DATABASE_URL_FILE: `serve`,"
                " `migrate` and `keys` need one of them"
            )
        if self.role in {Role.MIGRATE, Role.FORGET}:
            return problems
        if self.role is Role.DEV and self.workers > 1 and self.database_url is None:
            problems.append(
                f"HOOKLINE_WORKERS is {self.workers}, and HOOKLINE_DATABASE_URL is not set: the"
                " embedded Postgres serves one process, so set one of them otherwise"
            )
        if self.role is not Role.DEV and not self.master_keys:
            problems.append(
                "HOOKLINE_MASTER_KEY is not set, nor HOOKLINE_MASTER_KEY_FILE, nor"
                f" HOOKLINE_MASTER_KEY_COMMAND: `{self.role}` needs one, to encrypt secrets with;"
                " `openssl rand -base64 32` makes one. Keep it: without it secrets cannot be read"
            )
        if self.role is Role.KEYS:
            return problems
        if not self.is_auth_on and self.identity_settings:
            problems.append(
                f"HOOKLINE_AUTH is off, and {self.identity_settings[0]} is set, which then counts"
                " for nothing: set HOOKLINE_AUTH=on"
            )
        if not self.is_auth_on and not self.listen.is_loopback:
            problems.append(
                f"HOOKLINE_AUTH is off, and HOOKLINE_LISTEN is {self.listen}: without"
                " authentication only a loopback address may be served, such as 127.0.0.1:50051"
            )
        problems += self.tls.contradictions(self.listen)
        problems += self.tokens.contradictions()
        problems += limit_contradictions(self.limits)
        if self.publish_lock_wait_s > self.statement_timeout_s * TURNS_PER_WAIT:
            problems.append(
                f"HOOKLINE_PUBLISH_LOCK_WAIT_S is {self.publish_lock_wait_s:g}, and"
                f" HOOKLINE_STATEMENT_TIMEOUT_S {self.statement_timeout_s:g}: a statement waits for"
                f" an {TURNS_PER_WAIT}th of the former, which must not exceed the latter"
            )
        held = memory.parts(
            self.limits,
            max_calls=self.max_calls,
            pool_size=self.pool_size,
            path_pool_size=self.path_pool_size,
            max_in_flight=self.max_in_flight,
            max_handshakes=self.egress.handshakes_max,
            max_handshake_bytes=self.egress.handshake_bytes_max,
            max_certificate_bytes=self.egress.certificate_bytes_max,
            max_queued_deliveries=self.max_queued_deliveries,
            max_queued_delivery_bytes=self.max_queued_delivery_bytes,
            max_index_bytes=self.max_index_bytes,
            max_lane_bytes=self.max_lane_bytes,
            max_schema_cache_bytes=self.max_schema_cache_bytes,
            max_cached_keys=self.max_cached_keys,
        )
        if problem := memory.contradiction(self.memory_mb, list(held)):
            problems.append(problem)
        return problems
