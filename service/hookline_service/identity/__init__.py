"""The certificate of this service, and the identities of callers from certificates and tokens.

Depends on X.509, JOSE and files, on neither gRPC nor Postgres. Files and issuer keys are read again
when they change; an invalid new version is rejected, and the previous one stays in use.
"""
