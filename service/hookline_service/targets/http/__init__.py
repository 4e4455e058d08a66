"""HTTP targets: one signed request and its response. The only package with httpx and httptools.

Must not use SQL. Read in this order:

`sender`         prepare a target; make an attempt and return its `Outcome`
`signature`      signing secrets and signatures (Standard Webhooks)
`transport`      the connection pool, its deadlines and limits
`connection`     one HTTP/1.1 connection
`answer`         the parser of responses
`dialer`         open a connection: resolve, check, connect, TLS
`egress`         the egress policy: hosts, ports, addresses
`resolver`       DNS lookups and the check of the resolver
`tls`            TLS contexts, client certificates, the bound on handshakes
`proxy`          the way through an egress proxy
`tenant_shares`  fair shares of lookups, handshakes and certificate memory
`handshake`      ask a target for its consent (CloudEvents webhooks)
`failure`        errors of sockets and TLS as one exception
"""
