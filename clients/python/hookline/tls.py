"""How a connection is secured: whose word counts, who the caller is, what the service is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS with files of one's own; without any, with the system's roots."""

    ca_file: str | Path | None = None
    """PEM: the authorities that may have signed the service's certificate, instead of the
    system's."""
    cert_file: str | Path | None = None
    """PEM: the client's certificate, then intermediate ones; for a service that asks for one."""
    key_file: str | Path | None = None
    """PEM: its private key, without a passphrase."""
    server_name: str | None = None
    """The name that the service's certificate is for, where it is not the target's."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files, once.

        OSError: one cannot be read; ValueError: one is not PEM, or half a pair is named.
        """
        if (self.cert_file is None) is not (self.key_file is None):
            raise ValueError("a client's certificate and its key go together: name both files")
        return grpc.ssl_channel_credentials(
            _content(self.ca_file), _content(self.key_file), _content(self.cert_file)
        )

    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """What a channel has to be told besides."""
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def _content(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    content = Path(path).read_bytes()
    if b"-----BEGIN " not in content:
        raise ValueError(f"{path} is no file in PEM")
    return content
