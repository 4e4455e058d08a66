"""Callers chosen by a test, and a servicer that records them."""

from __future__ import annotations

from hookline.v1.tenant_service_pb2 import GetTenantRequest, GetTenantResponse
from hookline.v1.tenant_service_pb2_grpc import TenantServiceServicer
from hookline_service.api.middleware.authentication import AuthContext, Metadata
from hookline_service.domain.caller import Caller, Scope, current_caller
from hookline_service.domain.errors import Reason, UnavailableError, unauthenticated
from tests.api.conftest import refusing

ALL = frozenset(Scope)


def caller(*scopes: Scope, tenant: str | None = None) -> Caller:
    return Caller(principal="some-caller", scopes=frozenset(scopes or ALL), tenant_id=tenant)


class HeaderSource:
    """A source that authenticates callers by the metadata entry `caller`."""

    def __init__(self, **callers: Caller) -> None:
        self.callers = callers
        self.asked: list[tuple[str, str]] = []
        """The metadata entry and the peer of each call."""
        self.is_away = False

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        del auth_context
        word = dict(metadata).get("caller")
        if not isinstance(word, str):
            return None
        self.asked.append((word, peer))
        if self.is_away:
            raise UnavailableError("ask later", Reason.DATABASE_UNAVAILABLE)
        if word not in self.callers:
            raise unauthenticated()
        return self.callers[word]


class RecordingTenants(refusing(TenantServiceServicer).__class__):  # type: ignore[misc]
    """A servicer whose GetTenant records its callers."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def GetTenant(self, request: GetTenantRequest, context: object) -> GetTenantResponse:
        del request, context
        self.callers.append(current_caller())
        return GetTenantResponse()
