r"""Whose certificates may do what: a TOML file that gives names in certificates their grants.

    [[client]]
    uri = "spiffe://example.org/shop/orders"     # or dns = "…", or email = "…"
    scopes = ["publish"]
    tenant = "acme"                              # "-": all tenants

The names are those of the certificate's subject alternative names (RFC 5280 section 4.2.1.6),
compared as a whole; of several, the first that is listed counts: URIs (SPIFFE) before DNS names
before e-mail addresses. Who is not listed is nobody. The subject's common name counts for nothing.

They are read from the certificate itself: whoever passes them on as C strings ends them at a NUL,
and `admin.example.org\0.evil.com` becomes `admin.example.org`. A certificate that has a character
in any name which cannot be printed, or is not ASCII, has no names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from hookline_service.identity.files import SourceError, read_file
from hookline_service.identity.grants import Grant, scopes_of, tenant_of

CLIENTS: Final = "HOOKLINE_TLS_CLIENTS"
KINDS: Final = ("uri", "dns", "email")
"""Of names, in the order in which they count."""

ClientName = tuple[str, str]
"""A kind and a name."""


_MAX_REMEMBERED: Final = 1_024


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What counts of a client's certificate."""

    names: Sequence[ClientName]
    """In the order in which they count."""
    expire_time: datetime


@lru_cache(maxsize=_MAX_REMEMBERED)
def read_client_certificate(pem: bytes) -> ClientCertificate | None:
    """Read a certificate that the TLS handshake has verified; None: it has no names that count."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        shown = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [
            *(("uri", uri) for uri in shown.get_values_for_type(x509.UniformResourceIdentifier)),
            *(("dns", name) for name in shown.get_values_for_type(x509.DNSName)),
            *(("email", mailbox) for mailbox in shown.get_values_for_type(x509.RFC822Name)),
        ]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None
    if not all(name.isascii() and name.isprintable() for _, name in found):
        return None
    return ClientCertificate(found, certificate.not_valid_after_utc)


@dataclass(frozen=True, slots=True)
class ClientNames:
    """Every name that is listed, and what it may do."""

    grants: Mapping[ClientName, Grant]

    @property
    def summary(self) -> str:
        """How many there are."""
        return f"{len(self.grants)} clients known by their certificates"

    @property
    def expires_at(self) -> datetime | None:
        """Never."""
        return None

    def find(self, names: Iterable[ClientName]) -> tuple[ClientName, Grant] | None:
        """The first of a certificate's names that is listed, and what it may do."""
        for kind, name in names:
            listed = (kind, _folded(kind, name))
            if (grant := self.grants.get(listed)) is not None:
                return listed, grant
        return None


def read_client_names(path: Path) -> ClientNames:
    """Read the file. Raises `SourceError` with the first thing that is wrong."""
    try:
        document = tomllib.loads(read_file(CLIENTS, path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{CLIENTS} names {path}, which is not TOML: {error}") from error
    entries = document.pop("client", [])
    are_tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if document or not are_tables:
        raise SourceError(f"{CLIENTS} names {path}, which holds something else than [[client]]")
    grants: dict[ClientName, Grant] = {}
    for number, entry in enumerate(entries, 1):
        try:
            _add_client(grants, entry)
        except ValueError as error:
            raise SourceError(f"{CLIENTS} names {path}: [[client]] {number}: {error}") from None
    return ClientNames(grants)


def _add_client(grants: dict[ClientName, Grant], entry: Mapping[str, Any]) -> None:
    if unknown := sorted(entry.keys() - {*KINDS, "scopes", "tenant"}):
        raise ValueError(f"{unknown[0]} is not known here")
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        raise ValueError("needs one of uri, dns and email, and no more")
    name = entry[kinds[0]]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{kinds[0]} must be a text")
    if not (name.isascii() and name.isprintable()):
        raise ValueError(f"{kinds[0]} must consist of printable ASCII characters")
    listed = (kinds[0], _folded(kinds[0], name))
    if listed in grants:
        raise ValueError(f'{kinds[0]} = "{name}" stands there twice')
    scopes = entry.get("scopes")
    if not isinstance(scopes, list) or not scopes:
        raise ValueError("scopes must be a list, and not empty")
    if "tenant" not in entry:
        raise ValueError('tenant must be there: an id, or "-" for all')
    grants[listed] = Grant(scopes_of(scopes), tenant_of(entry["tenant"]))


def _folded(kind: str, name: str) -> str:
    """URIs are compared as they stand, hosts and mailboxes without regard to case."""
    return name if kind == "uri" else name.lower()
