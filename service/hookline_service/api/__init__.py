"""The gRPC API: a package for each resource, and what every call passes before it.

`server` assembles it, with `tls`, `health` and `reflection`. `middleware` is what every call
passes: authentication, scopes, admission, audit policy, errors. `conversion` is what all
resources share. Then a package for each resource, with its service and its conversions: `access`,
`tenants`, `subscriptions`, `event_types`, `events`, `deliveries`, `operations`. RPCs of the
contract without an implementation are in `unimplemented`.
"""
