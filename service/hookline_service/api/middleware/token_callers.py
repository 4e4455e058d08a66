"""Callers who are known by a token of an OIDC issuer, in `authorization: Bearer …`."""

from __future__ import annotations

from hookline_service.api.middleware.authentication import AuthContext, Metadata, bearer_token_in
from hookline_service.domain.api_key import TOKEN_PREFIX
from hookline_service.domain.caller import Caller
from hookline_service.identity.tokens import Tokens


class TokenCallers:
    """Knows callers by their tokens; API keys are another source's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Whose token it is; None: there is none."""
        del auth_context, peer
        token = bearer_token_in(metadata)
        if token is None or token.startswith(TOKEN_PREFIX):
            return None
        return await self._tokens.caller_of(token)
