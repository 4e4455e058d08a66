"""`hookline keys`: its actions; master keys here, API keys in `api_keys`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hookline_service.app import StartError
from hookline_service.app.master_key import (
    KeyUse,
    RotationReport,
    forget_master,
    key_ids,
    rotate_master,
)
from hookline_service.cli import api_keys
from hookline_service.cli.failure import CommandError
from hookline_service.cli.node import read_settings
from hookline_service.cli.progress import Progress
from hookline_service.config import Role
from hookline_service.domain.caller import SERVICE, Caller, calling


def run(asked: argparse.Namespace) -> int:
    """Run the action."""
    if action := _OF_A_SERVICE.get(asked.action):
        return action(asked)
    try:
        with calling(_account(f"keys {asked.action}")):
            return _OF_THE_DATABASE[asked.action](asked)
    except StartError as error:
        raise CommandError(str(error)) from error


def _account(command: str) -> Caller:
    """Return the caller that the audit log names for a command that works on the database itself.

    Access to the database and the master key is that of the service, so the caller is the service;
    its address is `USER@HOST`, as this machine reports them.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        user = "unknown"
    return replace(
        SERVICE, method=f"hookline {command}", remote_address=f"{user}@{socket.gethostname()}"
    )


def _rotate(_asked: argparse.Namespace) -> int:
    settings = read_settings(Role.KEYS, {})
    writing, *reading = (key_id.hex() for key_id in key_ids(settings))
    print(f"writes with {writing}" + "".join(f", reads {key_id} too" for key_id in reading))
    report = asyncio.run(rotate_master(settings, Progress().show))
    print(
        f"sealed again: {report.data_keys:,} data keys, {report.secrets:,} secrets without one,"
        f" {report.deployment_keys:,} keys of the deployment"
    )
    for line in _uses(report, key_ids(settings)):
        print(line)
    for reason in report.unreadable:
        print(f"hookline: left as it was: {reason}", file=sys.stderr)
    return 1 if report.unreadable else 0


def _uses(report: RotationReport, keys: Sequence[bytes]) -> list[str]:
    """Return a line for each key: still in use, or safe to remove."""
    used = {use.key_id: use for use in report.used}
    lines = [f"in use: {_use(use)}" for use in report.used]
    lines += [
        f"not in use: {key_id.hex()}; remove it from HOOKLINE_MASTER_KEY once no node has it first"
        for key_id in keys[1:]
        if key_id not in used
    ]
    return lines or ["nothing is sealed yet"]


def _use(use: KeyUse) -> str:
    text = f"{use.key_id.hex()} seals {use.data_keys:,} data keys"
    text += f" and {use.deployment_keys:,} of the deployment" if use.deployment_keys else ""
    return text + (f" and {use.secrets:,} secrets without one" if use.secrets else "")


def _forget(asked: argparse.Namespace) -> int:
    text: str = asked.key_id
    settings = read_settings(Role.FORGET, {})
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise CommandError(f"{text!r} is not a key id: 16 hexadecimal digits, as `serve` prints it")
    key_id = bytes.fromhex(text)
    if key_id in key_ids(settings):
        raise CommandError(f"{text} is in HOOKLINE_MASTER_KEY: it is not lost")
    if not asyncio.run(forget_master(settings, key_id)):
        raise CommandError(f"nothing was sealed with {text}", code=1)
    print(
        f"nodes start without {text} now; rotate the secret of each subscription that is held, and"
        " create new API keys where none is accepted"
    )
    return 0


_OF_A_SERVICE: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": api_keys.show,
    "revoke": api_keys.revoke,
}
"""Asked of a service, which writes the audit entry itself."""
_OF_THE_DATABASE: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "create": api_keys.create,
    "rotate-master": _rotate,
    "forget-master": _forget,
}
