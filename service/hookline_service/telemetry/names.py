"""Names of exported spans and attributes.

They follow the semantic conventions 1.44 where those define a name (rpc, messaging, http, server,
db, error); other names begin with `hookline.`. No attribute contains the path or query of a URL, a
header's value or a part of a payload; no metric has a label with many values.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "hookline"
"""The instrumentation scope of all spans and metrics."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

ERROR_TYPE: Final = "error.type"
CANCELLED: Final = "cancelled"

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
GRPC: Final = "grpc"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_SUBSCRIPTION: Final = "messaging.destination.subscription.name"
MESSAGING_MESSAGE: Final = "messaging.message.id"
MESSAGING_BATCH_COUNT: Final = "messaging.batch.message_count"
HOOKLINE: Final = "hookline"
PUBLISH: Final = "publish"
DELIVER: Final = "deliver"

HTTP_METHOD: Final = "http.request.method"
HTTP_STATUS: Final = "http.response.status_code"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
URL_SCHEME: Final = "url.scheme"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
PEER_ADDRESS: Final = "network.peer.address"
POST: Final = "POST"

DELIVERY: Final = "hookline.delivery.id"
ATTEMPT: Final = "hookline.attempt.number"
OUTCOME: Final = "hookline.attempt.outcome"
IS_RECORDED: Final = "hookline.attempt.recorded"
