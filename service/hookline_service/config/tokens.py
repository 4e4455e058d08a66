"""The settings of tokens from an OIDC issuer, and where they do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hookline_service.config.reading import Reader, number, parse_claim, parse_key_location
from hookline_service.identity.files import SourceError, read_file
from hookline_service.identity.key_set import KEYS, KeySet, parse_key_set
from hookline_service.identity.tokens import TokenRules


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Whose tokens count, and what they say where."""

    issuer: str
    """HOOKLINE_JWT_ISSUER, as `iss` has it; empty: no tokens"""
    audience: str
    """HOOKLINE_JWT_AUDIENCE, as `aud` has it"""
    keys: str | Path | None
    """HOOKLINE_JWT_KEYS: a URL or a file"""
    scopes_claim: str
    """HOOKLINE_JWT_SCOPES_CLAIM"""
    tenant_claim: str
    """HOOKLINE_JWT_TENANT_CLAIM"""
    leeway_s: float
    """HOOKLINE_JWT_LEEWAY_S: what an issuer's clock may differ by"""
    refresh_s: float
    """HOOKLINE_JWT_REFRESH_S: between two fetches of the keys"""

    @property
    def rules(self) -> TokenRules | None:
        """What a token must say; None: none counts."""
        if not (self.issuer and self.audience and self.keys):
            return None
        return TokenRules(
            issuer=self.issuer,
            audience=self.audience,
            scopes_claim=self.scopes_claim,
            tenant_claim=self.tenant_claim,
            leeway_s=self.leeway_s,
        )

    def contradictions(self) -> Iterator[str]:
        """What is wrong, and what to do; a file of keys is read for it."""
        values = {
            "HOOKLINE_JWT_ISSUER": self.issuer,
            "HOOKLINE_JWT_AUDIENCE": self.audience,
            "HOOKLINE_JWT_KEYS": self.keys,
        }
        missing = [name for name, value in values.items() if not value]
        if 0 < len(missing) < len(values):
            yield (
                f"{' and '.join(missing)} must be set, too: tokens count only of one issuer"
                " (HOOKLINE_JWT_ISSUER), for one audience (HOOKLINE_JWT_AUDIENCE), by its keys"
                " (HOOKLINE_JWT_KEYS)"
            )
        elif isinstance(self.keys, Path):
            try:
                read_key_file(self.keys)
            except SourceError as error:
                yield str(error)


def read_key_file(path: Path) -> KeySet:
    """The keys in a file. Raises `SourceError`."""
    return parse_key_set(read_file(KEYS, path), str(path))


def read_tokens(read: Reader) -> TokenSettings:
    """The settings of tokens, each judged by itself."""
    return TokenSettings(
        issuer=read("JWT_ISSUER", str, ""),
        audience=read("JWT_AUDIENCE", str, ""),
        keys=read("JWT_KEYS", parse_key_location, None),
        scopes_claim=read("JWT_SCOPES_CLAIM", parse_claim, "scope"),
        tenant_claim=read("JWT_TENANT_CLAIM", parse_claim, "hookline_tenant"),
        leeway_s=read("JWT_LEEWAY_S", number(0, 300, "seconds"), 30.0),
        refresh_s=read("JWT_REFRESH_S", number(30, 86_400, "seconds"), 300.0),
    )
