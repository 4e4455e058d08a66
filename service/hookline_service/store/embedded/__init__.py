"""The Postgres that `hookline dev`, the demo and the tests bring along. Independent of our SQL.

Read in this order: `server` (started, adopted, stopped), `home` (where it lives, and access to it),
`account` (the account it runs as), `programs`, `settings`, `postmaster` (its first process).
"""

from hookline_service.store.embedded.account import EmbeddedPostgresError
from hookline_service.store.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
