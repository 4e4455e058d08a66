"""Estimates of the pending deliveries of each tenant; a count of millions would take seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from hookline_service.store.database import Database
from hookline_service.store.statements import Statements

SQL = Statements("backlog")

PAGES_SAMPLED: Final = 2_000
"""16 MB, about 150,000 rows: a smaller table is counted exactly."""
ROWS_PER_PAGE_MAX: Final = 100
"""The most rows that fit into a page of 8 KiB."""


class BacklogStore:
    """Estimates what is pending."""

    def __init__(self, database: Database, *, pages_sampled: int = PAGES_SAMPLED) -> None:
        self._database = database
        self._pages_sampled = pages_sampled

    async def most(self) -> int:
        """Return an upper bound of all pending deliveries, from the size of the table."""
        return await self._pages() * ROWS_PER_PAGE_MAX

    async def by_tenant(self) -> Mapping[UUID, int]:
        """Return the estimate of each tenant.

        Exact up to `PAGES_SAMPLED` pages; beyond, a tenant's figure is that of the pages that were
        looked at, and errs by 1/√n of itself where n of these hold rows of its.
        """
        pages = await self._pages()
        percent = min(100.0, 100.0 * self._pages_sampled / pages) if pages else 100.0
        rows = await self._database.fetch(SQL.by_tenant, percent)
        return {row["tenant_uid"]: round(row["sampled"] * 100 / percent) for row in rows}

    async def _pages(self) -> int:
        row = await self._database.fetchrow(SQL.pages)
        assert row is not None  # noqa: S101 - it always answers
        pages: int = row["pages"]
        return pages
