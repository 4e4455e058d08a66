"""The settings of TLS, and where they do not go together with one another or with their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hookline_service.config.reading import ListenAddress, Reader, parse_file, switch
from hookline_service.identity.client_names import read_client_names
from hookline_service.identity.files import SourceError
from hookline_service.identity.server_certificate import CertificateFiles, read_server_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """How connections are secured."""

    certificate: Path | None
    """HOOKLINE_TLS_CERT; None: gRPC is served in plaintext"""
    key: Path | None
    """HOOKLINE_TLS_KEY"""
    client_ca: Path | None
    """HOOKLINE_TLS_CLIENT_CA; None: clients show no certificates"""
    clients: Path | None
    """HOOKLINE_TLS_CLIENTS: whose certificates may do what; None: nobody's may anything"""
    is_plaintext_allowed: bool
    """HOOKLINE_ALLOW_PLAINTEXT: also where other machines can read along"""

    @property
    def files(self) -> CertificateFiles | None:
        """What TLS is served with; None: it is not."""
        if self.certificate is None or self.key is None:
            return None
        return CertificateFiles(self.certificate, self.key, self.client_ca)

    def contradictions(self, listen: ListenAddress) -> Iterator[str]:
        """What is wrong, and what to do; the files are read for it."""
        if self.clients is not None:
            yield from self._contradictions_of_clients(self.clients)
        if self.files is not None:
            try:
                read_server_certificate(self.files)
            except SourceError as error:
                yield str(error)
        elif self.certificate is not None:
            yield (
                "HOOKLINE_TLS_CERT is set, and HOOKLINE_TLS_KEY is not: name the file with the"
                " certificate's private key, too"
            )
        elif self.key is not None:
            yield (
                "HOOKLINE_TLS_KEY is set, and HOOKLINE_TLS_CERT is not: name the file with the"
                " key's certificate, too"
            )
        elif self.client_ca is not None:
            yield (
                "HOOKLINE_TLS_CLIENT_CA is set, and HOOKLINE_TLS_CERT is not: certificates of"
                " clients are seen over TLS only, so set HOOKLINE_TLS_CERT and HOOKLINE_TLS_KEY"
            )
        elif not listen.is_loopback and not self.is_plaintext_allowed:
            yield (
                f"HOOKLINE_LISTEN is {listen}, which other machines reach, in plaintext: set"
                " HOOKLINE_TLS_CERT and HOOKLINE_TLS_KEY, serve a loopback address, or set"
                " HOOKLINE_ALLOW_PLAINTEXT=on"
            )

    def _contradictions_of_clients(self, clients: Path) -> Iterator[str]:
        if self.client_ca is None:
            yield (
                "HOOKLINE_TLS_CLIENTS is set, and HOOKLINE_TLS_CLIENT_CA is not: clients show"
                " certificates only where it names who signs them"
            )
        try:
            read_client_names(clients)
        except SourceError as error:
            yield str(error)


def read_tls(read: Reader) -> TlsSettings:
    """The settings of TLS, each judged by itself."""
    return TlsSettings(
        certificate=read("TLS_CERT", parse_file, None),
        key=read("TLS_KEY", parse_file, None),
        client_ca=read("TLS_CLIENT_CA", parse_file, None),
        clients=read("TLS_CLIENTS", parse_file, None),
        is_plaintext_allowed=read("ALLOW_PLAINTEXT", switch, default=False),
    )
