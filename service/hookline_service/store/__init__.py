"""Postgres, and the only room that knows it: plain SQL in `sql/`, run through asyncpg.

What is stored and read is told in the words of `domain`; errors of Postgres are translated here,
once (`database`); `connecting` makes a connection ready. `statements` reads the SQL, `migrations`
and `partitions` make the tables.

The data path writes and reads by `publishing`, `routes`, `lanes`, `recording`, `ownership`,
`notifying`, `operations`, `upkeep` and `backlog`; what calls keep and ask for is in `tenants`,
`event_types`, `subscriptions` (with `subscription_rows`, `subscription_secrets`,
`subscription_audit`), `events` and `event_rows`, `deliveries`, `api_keys`, `audit` (with
`audit_checkpoints`) and `status`, with `uids` that sort by creation; lists of all tenants are read
in `windows`. Secrets are sealed before they are stored: `secrets`, `data_keys`, `deployment_keys`,
`master_keys`. A room of its own is `embedded`, the Postgres that `hookline dev` brings along;
nothing else here knows it.

The room must not know gRPC, HTTP, or the pipeline that calls it.
"""
