"""The TLS settings of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS settings; by default, the root certificates of the system are trusted."""

    ca_file: str | Path | None = None
    """PEM file: the trusted certificate authorities, instead of those of the system."""
    cert_file: str | Path | None = None
    """PEM file: the client certificate, then its intermediate certificates (mutual TLS)."""
    key_file: str | Path | None = None
    """PEM file: the private key of `cert_file`, without a passphrase."""
    server_name: str | None = None
    """The name in the service's certificate, if it differs from the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return the credentials.

        Raises OSError if a file cannot be read; ValueError if a file is not PEM, or if only one of
        `cert_file` and `key_file` is set.
        """
        if (self.cert_file is None) is not (self.key_file is None):
            raise ValueError("`cert_file` and `key_file` must be set together: one is missing")
        return grpc.ssl_channel_credentials(
            _content(self.ca_file), _content(self.key_file), _content(self.cert_file)
        )

    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """Return the channel options that `server_name` needs."""
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def _content(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    content = Path(path).read_bytes()
    if b"-----BEGIN " not in content:
        raise ValueError(f"{path} is not a PEM file")
    return content
