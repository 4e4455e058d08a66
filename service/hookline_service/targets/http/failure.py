"""Failures of an attempt as one exception, into which foreign errors are translated.

Errors of asyncio, OpenSSL and the operating system end here: the transport raises `AttemptFailure`
only, and the sender turns it into an `Outcome`. Texts are for the owner of the target: they contain
no resolved address, no header and no byte of a response.
"""

from __future__ import annotations

import errno
import ssl

import httpx

from hookline_service.domain.attempt import AttemptOutcome

OWN_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
"""Shortages of this machine, never of the target: descriptors, memory, a network, a port."""

_SENTENCES = {
    errno.ECONNREFUSED: "the connection was refused",
    errno.ECONNRESET: "the connection was reset",
    errno.ECONNABORTED: "the connection was aborted",
    errno.EPIPE: "the connection was closed while the request was being sent",
    errno.ETIMEDOUT: "the connection timed out",
    errno.EHOSTUNREACH: "the host is unreachable",
    errno.ENETUNREACH: "the network is unreachable",
    errno.EMFILE: "no file descriptor is left in this process",
    errno.ENFILE: "no file descriptor is left on this machine",
    errno.EADDRNOTAVAIL: "no local address or port is left to connect from",
}


class AttemptFailure(httpx.TransportError):
    """A request without a response, and the reason.

    `kind` is never ACCEPTED or HTTP_ERROR. `was_sent`: any byte of the request may have
    reached a server. `remote_address` is the address connected to, if any. `is_shortage`: the
    machine lacks what idle connections hold: descriptors, memory, ports.
    """

    def __init__(
        self,
        kind: AttemptOutcome,
        message: str,
        *,
        remote_address: str | None = None,
        was_sent: bool = False,
        is_shortage: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remote_address = remote_address
        self.was_sent = was_sent
        self.is_shortage = is_shortage


def failure_of_os_error(error: OSError, *, remote_address: str | None = None) -> AttemptFailure:
    """Translate an error of the operating system or of TLS, raised before anything was sent."""
    if isinstance(error, ssl.SSLError):
        return AttemptFailure(
            AttemptOutcome.TLS_FAILED, tls_sentence(error), remote_address=remote_address
        )
    is_own = error.errno in OWN_ERRNOS
    return AttemptFailure(
        AttemptOutcome.INTERNAL_ERROR if is_own else AttemptOutcome.CONNECTION_FAILED,
        connection_sentence(error),
        remote_address=remote_address,
        is_shortage=is_own,
    )


def connection_sentence(error: OSError) -> str:
    """Describe a connection error in one line."""
    if error.errno in _SENTENCES:
        return _SENTENCES[error.errno]
    name = errno.errorcode.get(error.errno or 0)
    return f"the connection failed ({name})" if name else "the connection failed"


def tls_sentence(error: ssl.SSLError) -> str:
    """Describe a TLS error in one line: OpenSSL's reason, no name and no byte of the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # X509_V_ERR_HOSTNAME_MISMATCH and its kin quote the name asked for: which the target's
        # owner may see.
        return f"the certificate did not verify: {error.verify_message.rstrip('.')}"
    reason = (error.reason or "the handshake failed").replace("_", " ").lower()
    return f"TLS failed: {reason}"
