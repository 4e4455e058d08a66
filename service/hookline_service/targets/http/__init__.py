"""One request and its answer: the only room that knows httpx and httptools, and nothing of SQL.

Read in this order: `sender` (what the pipeline calls), `prepared`, `payload`, `signature` and
`client_certificate` (what is sent and shown), `transport`, `origin`, `pool`, `certificate_budget`,
`deadlines`, `dialer`, `resolver`, `resolver_check`, `lookup_turns`, `handshake_turns`,
`tls_handshake`, `egress`, `hosts`, `ports`, `idn`, `route`, `proxy`, `connection` and `answer` (how
it travels), `handshake` (how a target is asked first), `failure` (how what goes wrong becomes a
value).
"""
