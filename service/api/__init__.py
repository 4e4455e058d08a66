"""The gRPC frame and the services: convert, call, convert. What the engine does is decided below.

Read `server` for the whole and `errors` for every refusal. Then the door, which every call passes:
`interceptors`, `authentication` with its sources (`api_key_source`, `certificate_callers`,
`token_callers`), `scopes`, `admission` with `rates`, `list_turns`, `read_slots`, `byte_budget` and
`message_fields`, `unread_answers`, `audited`, `observing`, `streams`, `client_streams`. Behind it a
`*_service` for each service, with `publish_batch` and `publish_stream`, `audit_entries`, `paging`
and `update_mask`; `convert` and `convert_*` between their messages and the domain's values. Beside
it `tls`, `health`, `reflection`, and what is `unbuilt`.
"""
