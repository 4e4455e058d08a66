"""The gRPC API: a package for each resource, and the middleware that every call passes.

`server` assembles it, with `tls`, `health` and `reflection`. `middleware` has the registry of
methods, authentication, scopes, admission, audit policy and errors. `conversion` has the
conversions that all resources share. Each resource has a package with its service and conversions:
`access`, `tenants`, `subscriptions`, `event_types`, `events`, `deliveries`, `operations`. RPCs of
the contract without an implementation are in `unimplemented`.
"""
