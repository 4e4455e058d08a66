"""Postgres, which no other package uses: plain SQL in `sql/`, run through asyncpg.

Parameters and results are values of `domain`. `database` translates the errors of Postgres,
`connecting` prepares a connection, `statements` reads the SQL, `migrations` and `partitions` create
the tables.

The data path uses `publishing`, `routes`, `lanes`, `recording`, `ownership`,
`notifying`, `operations`, `upkeep` and `backlog`; calls use `tenants`,
`event_types`, `subscriptions` (with `subscription_rows`, `subscription_secrets`,
`subscription_audit`), `events` and `event_rows`, `deliveries`, `api_keys`, `audit` (with
`audit_checkpoints`) and `status`, with `uids` that sort by creation; lists of all tenants are read
in `windows`. Secrets are stored encrypted: `secrets`, `data_keys`, `deployment_keys`,
`master_keys`. The package `embedded` runs the Postgres of `hookline dev`; no other module here
depends on it.

The package must not depend on gRPC, HTTP, or the pipeline.
"""
