"""What every call passes, from the outermost inwards.

`interceptors` wraps each call, and `errors` translates every exception. The caller is found by
`authentication` with its sources (`api_key_source`, `certificate_callers`, `token_callers`); what
the caller may do is in `scopes`; what is audited, in `audit_policy`. `admission` bounds what runs
at once, with `token_buckets`, `list_turns`, `read_slots`, `byte_budget` and `message_fields`.
`unread_answers`, `streams` and `client_streams` bound what stays open; `observing` measures.
"""
