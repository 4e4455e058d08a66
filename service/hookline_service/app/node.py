"""One node: starts the database, the data path and the API in this order, and stops in reverse.

A stop is ordered so that no work waits for the end of a lease: health returns NOT_SERVING, no more
deliveries are taken, calls end, attempts in flight end and are recorded, the buckets are given to
other nodes, and only then the connections close. Each start pushes its stop on a stack, so a start
that fails halfway stops the parts that it has started, in the same order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import structlog

from hookline_service import VERSION
from hookline_service.api.middleware.call_observer import TelemetryObserver
from hookline_service.api.server import ApiServer, CannotListenError
from hookline_service.app.authenticator import Authenticator
from hookline_service.app.engine import SESSIONS, Engine
from hookline_service.app.metrics_sampler import make_metrics_sampler
from hookline_service.app.servicers import make_servicers
from hookline_service.config import ListenAddress, Role, Settings
from hookline_service.domain.errors import UnavailableError
from hookline_service.identity.files import SourceError
from hookline_service.pipeline.clock import MAX_SKEW_S, Clock, DatabaseTime, SystemClock
from hookline_service.pipeline.upkeep.audit_sealer import AuditSealer
from hookline_service.pipeline.upkeep.metrics_sampler import MetricsSampler
from hookline_service.store.audit_checkpoints import AuditCheckpoints
from hookline_service.store.connecting import UnsafeServerError
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database, OutcomeUnknownError
from hookline_service.store.deployment_keys import PAGE_TOKENS, load_or_create_deployment_key
from hookline_service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from hookline_service.store.master_keys import check_master_keys
from hookline_service.store.migrations import Migration, MigrationError, migrate, pending_migrations
from hookline_service.store.secrets import (
    MasterKeyError,
    SealedSecretError,
    SecretBox,
    load_or_create_master_key,
)
from hookline_service.store.tenants import Tenants
from hookline_service.store.upkeep import RetentionError, UpkeepStore
from hookline_service.telemetry.instruments import Instruments
from hookline_service.telemetry.meters import Meters
from hookline_service.telemetry.providers import FLUSH_S, Telemetry, TelemetryError

KEY_FILE = "master.key"
_LEAST_S = 1.0

_log = structlog.get_logger(__name__)


class StartError(Exception):
    """The node cannot start; the text names the cause and what to do."""


class App:
    """One node of the service."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, place: str = "") -> None:
        """`place` is the supervisor's name of this process, which shares its port; empty: none."""
        self._settings = settings
        self._place = place
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._hurry = asyncio.Event()
        self._stop_by_s = 0.0

    async def start(self) -> int:
        """Start everything; return the port that gRPC is served on.

        Raises `StartError`. After an error or a cancellation, the started parts are stopped.
        """
        try:
            return await self._start()
        except BaseException as error:
            await asyncio.shield(self.stop())
            if isinstance(error, FORESEEN):
                raise StartError(sentence_of(error)) from error
            raise

    async def _start(self) -> int:
        settings, push = self._settings, self._stack.push_async_callback
        if not self._place:  # else the supervisor holds the port
            await _check_address(settings.listen)
        telemetry = await self._start_telemetry()
        database = Database(
            await self._find_database(),
            pool_size=settings.pool_size,
            timeout_s=settings.statement_timeout_s,
        )
        await database.check_server()
        await _prepare_schema(settings, database)
        path = Database(
            database.url,
            pool_size=settings.path_pool_size,
            timeout_s=settings.statement_timeout_s,
            name="path",
        )
        for pool in (database, path):
            push(pool.close)
            await pool.open()
        if not self._place or self._place.endswith("/1"):  # only the first worker warns
            await _check_connections(settings, database)
        await Tenants(database).ensure_default()
        secrets = TenantSecrets(SecretBox(master_keys_of(settings)))
        await check_master_keys(database, secrets.box)
        instruments = Instruments(telemetry.tracer, telemetry.meters)
        engine = Engine(settings, database, path, secrets, self._clock, self._place, instruments)
        await self._start_data_path(engine)
        authenticator = await Authenticator.make(
            settings, database, secrets.box, engine, self._clock
        )
        push(authenticator.stop)
        authenticator.start()
        await self._start_sealer(engine, database, secrets.box, telemetry.meters)
        page_key = await load_or_create_deployment_key(database, secrets.box, PAGE_TOKENS)
        server = ApiServer(
            make_servicers(settings, database, engine, secrets, authenticator, page_key=page_key),
            address=str(settings.listen),
            limits=settings.limits,
            identities=authenticator.identities,
            credentials=authenticator.source_watcher.server_credentials(),
            max_calls=settings.max_calls,
            share_port=bool(self._place),
            observer=TelemetryObserver(instruments),
        )
        push(self._stop_serving, server)
        port = await server.start()
        engine.ownership.serve_at(str(ListenAddress(settings.listen.host, port)))
        self._stack.callback(engine.ownership.begin_leaving)
        self._stack.callback(engine.deliverer.pause)
        self._start_sampler(make_metrics_sampler(settings, database, engine, telemetry))
        push(server.set_serving, False)  # noqa: FBT003 - health answers NOT_SERVING
        await server.set_serving(True)
        push(_cancel, asyncio.create_task(self._follow_clock(engine.time, server), name="clock"))
        _log.info("node_started", node_id=str(engine.ownership.node_id), port=port)
        return port

    async def stop(self) -> None:
        """Stop everything, in order; wait for work in flight for up to HOOKLINE_STOP_GRACE_S."""
        self._stop_by_s = asyncio.get_running_loop().time() + self._settings.stop_grace_s
        await self._stack.aclose()

    def hurry(self) -> None:
        """Make a stop wait no longer; attempts that were not recorded are sent again."""
        self._hurry.set()

    async def _follow_clock(self, time: DatabaseTime, server: ApiServer) -> None:
        """Set health to NOT_SERVING while the clocks of this machine and the database differ."""
        was_trusted = True
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            if time.is_trusted is not was_trusted:
                was_trusted = time.is_trusted
                _log.warning("clock_checked", is_trusted=was_trusted, ahead_s=round(time.skew_s, 3))
                await server.set_serving(was_trusted)

    # ---------------------------------------------------------------------- parts of the start

    async def _start_telemetry(self) -> Telemetry:
        """Start telemetry first, so that it stops last."""
        worker = int(self._place.rpartition("/")[2] or 0)
        telemetry = Telemetry(self._settings.telemetry, version=VERSION, worker=worker)
        self._stack.push_async_callback(self._flush, telemetry)
        await telemetry.start()
        return telemetry

    async def _start_data_path(self, engine: Engine) -> None:
        push = self._stack.push_async_callback
        push(engine.transport.aclose)
        self._stack.callback(engine.timers.clear)
        push(engine.notifier.stop)
        push(engine.ownership.stop)
        push(engine.close_sessions)
        await engine.open_sessions()
        await engine.ownership.start()
        _check_clock(engine.time)
        push(engine.upkeep.stop)
        engine.upkeep.start()
        push(engine.schemas.stop)
        push(engine.changes.stop)
        await engine.changes.start()
        push(self._wait_for, engine.recorder.stop)
        engine.recorder.start()
        push(self._wait_for, engine.deliverer.stop)
        push(engine.refiller.stop)
        engine.refiller.start()
        push(engine.sweeper.stop)
        engine.sweeper.start()
        push(engine.quota.stop)
        engine.quota.start()
        push(self._wait_for, engine.publisher.stop)
        engine.publisher.start()
        engine.notifier.start()

    async def _start_sealer(
        self, engine: Engine, database: Database, box: SecretBox, meters: Meters
    ) -> None:
        checkpoints = AuditCheckpoints(database)
        key = await checkpoints.load_or_create_key(box, datetime.now(UTC))
        sealer = AuditSealer(engine.audit_log, checkpoints, key, meters)
        self._stack.push_async_callback(sealer.stop)
        sealer.start()

    def _start_sampler(self, sampler: MetricsSampler) -> None:
        self._stack.push_async_callback(sampler.stop)
        sampler.start()

    async def _find_database(self) -> str:
        """Return the URL of the database; starts the embedded one if the settings name none."""
        if self._settings.database_url is not None:
            return self._settings.database_url
        postgres = EmbeddedPostgres(self._settings.data_dir)
        self._stack.push_async_callback(postgres.stop)
        return await postgres.start()

    # ----------------------------------------------------------------------- parts of the stop

    async def _wait_for(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Stop a part that waits for work in flight, until the grace ends or `hurry` is called."""
        stopping = asyncio.ensure_future(stop())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait(
            {stopping, hurry}, timeout=self._left_s(), return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if stopping.done():
            await stopping
            return
        _log.warning("shutdown_timed_out", part=getattr(stop, "__qualname__", str(stop)))
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)

    async def _flush(self, telemetry: Telemetry) -> None:
        """Export the remaining telemetry, unless `hurry` was called."""
        await telemetry.stop(0.0 if self._hurry.is_set() else min(FLUSH_S, self._left_s()))

    async def _stop_serving(self, server: ApiServer) -> None:
        async def end_calls() -> None:
            await server.stop(self._left_s())

        await self._wait_for(end_calls)
        await server.stop(0)

    def _left_s(self) -> float:
        """Return what is left of the grace; at least `_LEAST_S`, for a part to end quickly."""
        return max(_LEAST_S, self._stop_by_s - asyncio.get_running_loop().time())


def master_keys_of(settings: Settings) -> tuple[bytes, ...]:
    """Return the master keys of the settings, or that of the data directory, created if missing."""
    if settings.master_keys:
        return settings.master_keys
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return load_or_create_master_key(settings.data_dir / KEY_FILE)


async def migrate_database(settings: Settings, *, post: bool) -> list[Migration]:
    """Bring the schema up to date; return the applied migrations. Raises `StartError`."""
    database = Database(settings.database_url or "", pool_size=1)
    try:
        await database.check_server()
        return await migrate(database.url, post=post)
    except FORESEEN as error:
        raise StartError(sentence_of(error)) from error


def _check_clock(time: DatabaseTime) -> None:
    """Raise `StartError` if this machine's clock differs too much from the database's."""
    if not time.is_trusted:
        raise StartError(
            f"this machine's clock differs by {abs(time.skew_s):.0f} s from the database's;"
            f" {MAX_SKEW_S:.0f} s are allowed: synchronize both with NTP"
        )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _check_address(address: ListenAddress) -> None:
    """Raise `StartError` if the address is in use, before a database is started in vain."""
    try:
        server = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, address.host, address.port, start_serving=False
        )
    except OSError as error:
        raise StartError(
            f"cannot listen on {address}: {error.strerror or error}; name another address with"
            " --listen or HOOKLINE_LISTEN"
        ) from error
    server.close()


async def _check_connections(settings: Settings, database: Database) -> None:
    """Warn if Postgres allows fewer connections than the processes of this machine may need."""
    each = settings.pool_size + settings.path_pool_size + SESSIONS
    needed = settings.workers * each
    limit = await database.connection_limit()
    if needed > limit:
        _log.warning(
            "connection_limit_too_low", needed=needed, limit=limit, workers=settings.workers
        )


async def _prepare_schema(settings: Settings, database: Database) -> None:
    """Migrate in development; in production, raise `MigrationError` if migrations are missing."""
    if settings.role is Role.DEV:
        await migrate(database.url)
        return
    if missing := await pending_migrations(database.url):
        raise MigrationError(
            f"the schema lacks {len(missing)} migrations of this version: run `hookline migrate`"
        )
    # No node may have run for weeks: the partitions of the next days must exist.
    days = UpkeepStore(database.session("start"))
    try:
        await days.check_locks(
            max(settings.retention_days, settings.pending_retention_days), settings.pool_size
        )
        await days.create_partitions()
    finally:
        await days.close()


FORESEEN = (
    CannotListenError,
    EmbeddedPostgresError,
    MasterKeyError,
    MigrationError,
    OutcomeUnknownError,
    RetentionError,
    SealedSecretError,
    SourceError,
    TelemetryError,
    UnavailableError,
    UnsafeServerError,
)
"""The errors that prevent a start; their texts are written for operators."""


def sentence_of(error: BaseException) -> str:
    """Return the text for the operator; unlike a caller's, it has the cause of a lost database."""
    if isinstance(error, UnavailableError) and error.__cause__ is not None:
        return f"the database cannot be reached ({error.__cause__})"
    return str(error)
