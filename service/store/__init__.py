"""Postgres, and the only room that knows it: plain SQL in `sql/`, run through asyncpg.

What is stored and read is told in the words of `domain`; errors of Postgres are translated here,
once. The room also runs the Postgres that `hookline dev` brings along (`embedded`), and encrypts
secrets before they are stored. It must not know gRPC, HTTP, or the pipeline that calls it.
"""
