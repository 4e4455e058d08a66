"""The Postgres that `hookline dev`, the demo and the tests bring along. Knows no SQL of ours.

Read in this order: `server` (started, adopted, stopped), `home` (where it lives, and who may),
`account` (as whom it runs), `programs`, `settings`, `postmaster` (its first process).
"""

from hookline_service.store.embedded.account import EmbeddedPostgresError
from hookline_service.store.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
