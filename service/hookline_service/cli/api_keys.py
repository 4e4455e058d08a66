"""`hookline keys create | list | revoke`: API keys.

`create` works on the database itself, so that the first key can be made without one; `list` and
`revoke` ask a running service.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from datetime import datetime, timedelta
from typing import Final

from hookline import HooklineClient
from hookline.v1.access_service_pb2 import ListApiKeysRequest, RevokeApiKeyRequest
from hookline.v1.api_key_pb2 import ApiKey, ApiKeyScope
from hookline_service.app import create_api_key
from hookline_service.cli.failure import CommandError
from hookline_service.cli.node import read_settings
from hookline_service.cli.server import ask
from hookline_service.cli.wording import has_passed, plain, time_of, until
from hookline_service.config import Role
from hookline_service.config.secret_sources import variables_given
from hookline_service.domain.api_key import api_key_name, key_id_in
from hookline_service.domain.caller import Scope
from hookline_service.domain.names import check_id, check_text
from hookline_service.store.api_keys import NewApiKey

_PAGE_SIZE: Final = 1_000
_NAME_LENGTH_MAX: Final = 256
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1)}


def create(asked: argparse.Namespace) -> int:
    """Create a key; only its token goes to standard output. Raises `StartError`."""
    if problem := check_text(asked.name, _NAME_LENGTH_MAX):
        raise CommandError(f"--name {problem}")
    tenant_id = asked.tenant and asked.tenant.removeprefix("tenants/")
    if tenant_id is not None and (problem := check_id(tenant_id)):
        raise CommandError(f"--tenant {problem}")
    lifetime = None if asked.expires_in is None else _lifetime_in(asked.expires_in)

    def draft_at(now: datetime) -> NewApiKey:
        return NewApiKey(
            display_name=asked.name,
            tenant_id=tenant_id,
            scopes=frozenset(Scope(scope.upper()) for scope in asked.scope),
            expire_time=None if lifetime is None else now + lifetime,
        )

    role = Role.KEYS if variables_given(os.environ, "HOOKLINE_DATABASE_URL") else Role.DEV
    settings = read_settings(role, {"DATA_DIR": asked.data_dir})
    key, token = asyncio.run(create_api_key(settings, draft_at))
    print(token, flush=True)
    whose = "all tenants" if key.tenant_id is None else f"tenants/{key.tenant_id}"
    may = ", ".join(scope.value.lower() for scope in Scope if scope in key.scopes)
    ends = "" if key.expire_time is None else f", until {key.expire_time:%Y-%m-%d %H:%M} UTC"
    print(f"{api_key_name(key.key_id)} may {may} for {whose}{ends}", file=sys.stderr)
    print("its token is shown only once: keep it", file=sys.stderr)
    return 0


def show(asked: argparse.Namespace) -> int:
    """List the keys, newest first."""

    async def questions(client: HooklineClient) -> int:
        request = ListApiKeysRequest(page_size=_PAGE_SIZE)
        while True:
            page = await client.access.ListApiKeys(request)
            for key in page.api_keys:
                print(_line(key))
            if not page.next_page_token:
                return 0
            request.page_token = page.next_page_token

    return ask(asked, questions)


def revoke(asked: argparse.Namespace) -> int:
    """End a key."""
    key_id = key_id_in(asked.key_id) or asked.key_id  # the token of a leaked key will do
    name = key_id if "/" in key_id else api_key_name(key_id)

    async def questions(client: HooklineClient) -> int:
        answer = await client.access.RevokeApiKey(RevokeApiKeyRequest(name=name))
        print(_line(answer.api_key))
        return 0

    return ask(asked, questions)


def _line(key: ApiKey) -> str:
    scopes = (ApiKeyScope.Name(scope).removeprefix("API_KEY_SCOPE_") for scope in key.scopes)
    parts = [key.name, "+".join(scopes).lower(), key.tenant or "all tenants", _state(key)]
    parts.append(
        f"used {time_of(key.last_use_time)}" if key.HasField("last_use_time") else "unused"
    )
    if key.display_name:
        parts.append(plain(key.display_name))
    return "  ".join(parts)


def _state(key: ApiKey) -> str:
    if key.HasField("revoke_time"):
        return f"REVOKED {time_of(key.revoke_time)}"
    if not key.HasField("expire_time"):
        return "valid"
    is_over = has_passed(key.expire_time)
    return f"EXPIRED {time_of(key.expire_time)}" if is_over else f"ends {until(key.expire_time)}"


def _lifetime_in(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([hd])", text)
    if match is None:
        raise CommandError(
            f"--expires-in {text!r} must be a number of days or hours, such as 90d or 12h"
        )
    return int(match[1]) * _UNITS[match[2]]
