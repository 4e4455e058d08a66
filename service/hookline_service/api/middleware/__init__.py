"""The middleware that every call passes, from the outermost inwards.

`interceptors` wraps each call, and `errors` translates every exception; `methods` is the registry
of RPCs, with the rules of `scopes` and the policies of `audit_policy`. The caller is found by
`authentication` and `api_key_source`. `admission` is admission control, with `rate_limits`,
`read_slots`, `byte_budget` and `message_fields`. `unread_answers`, `streams` and `client_streams`
bound what stays open; `call_observer` traces and measures.
"""
