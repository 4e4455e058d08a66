"""`hookline dev`: a node for development, and what to type next."""

from __future__ import annotations

import argparse
import json
import shlex

from hookline_service import VERSION
from hookline_service.cli import node
from hookline_service.config import ListenAddress, Role, Settings
from hookline_service.config.tls import TlsSettings

# Lines that work as they stand: the end-to-end tests run them.
_NEXT = """\
Hookline {version} serves gRPC on {address}
  for development: {callers}, and targets on this machine are allowed{tls}
  the database is {database}; Ctrl-C stops it all

Try, in another terminal:

  grpcurl {options} {address} list
  grpcurl {options} {address} describe hookline.v1.Subscription

  hookline listen --port 8080

  grpcurl {options} -d '{subscription}' {address} {prefix}.SubscriptionService/CreateSubscription
  grpcurl {options} -d '{events}' {address} {prefix}.EventService/PublishEvents
  grpcurl {options} -d '{{"tenant":"tenants/default"}}' {address} {prefix}.DeliveryService/ListDeliveries

  hookline status --server {address}{flags}
  hookline event evt_... --server {address}{flags}

ready"""  # noqa: E501 - lines to be typed
_SUBSCRIPTION = {
    "tenant": "tenants/default",
    "subscription": {"event_types": ["*"], "http": {"url": "http://127.0.0.1:8080/"}},
}
_EVENTS = {
    "tenant": "tenants/default",
    "events": [{"type": "order.created", "json_data": '{"id":1}'}],
}


def run(asked: argparse.Namespace) -> int:
    """Serve until stopped."""
    settings = node.read_settings(Role.DEV, {"LISTEN": asked.listen, "DATA_DIR": asked.data_dir})

    def announce(address: ListenAddress) -> None:
        text = _NEXT.format(
            version=VERSION,
            address=address,
            **_access_lines(settings),
            database=_database(settings),
            subscription=_compact(_SUBSCRIPTION),
            events=_compact(_EVENTS),
            prefix="hookline.v1",
        )
        print(text, flush=True)

    return node.run(asked, settings, announce, ["dev", "--data-dir", str(settings.data_dir)])


def _access_lines(settings: Settings) -> dict[str, str]:
    """Return what the printed commands need for authentication and TLS."""
    access = _tls_flags(settings.tls)
    if not settings.is_auth_on:
        return access | {"callers": "no authentication"}
    create = "hookline keys create --scope admin"
    if settings.database_url is None:
        create += f" --data-dir {shlex.quote(str(settings.data_dir))}"
    return access | {
        "callers": f"authentication is on (export HOOKLINE_API_KEY=$({create}))",
        "options": f'{access["options"]} -H "authorization: Bearer $HOOKLINE_API_KEY"',
    }


def _tls_flags(tls: TlsSettings) -> dict[str, str]:
    """Return the flags of grpcurl and hookline for TLS, and a line about the files."""
    if tls.files is None:
        return {"options": "-plaintext", "flags": "", "tls": ""}
    files, options, flags = "ca.pem has signed its certificate", "-cacert ca.pem", " --ca ca.pem"
    if tls.client_ca is not None:
        files += (
            ", and client.pem is one of yours, signed by an authority of HOOKLINE_TLS_CLIENT_CA"
        )
        options += " -cert client.pem -key client.key"
        flags += " --cert client.pem --key client.key"
    return {"options": options, "flags": flags, "tls": f"\n  TLS: {files}"}


def _database(settings: Settings) -> str:
    if settings.database_url is not None:
        return "the one of HOOKLINE_DATABASE_URL"
    return f"in {settings.data_dir.absolute()}"


def _compact(request: object) -> str:
    return json.dumps(request, separators=(",", ":"))
