"""`hookline keys`: the master keys of a deployment; API keys are in api_keys.py."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from hookline_service.app import StartError
from hookline_service.app.master_key import (
    KeyUse,
    RotationReport,
    forget_master,
    key_ids,
    rotate_master,
)
from hookline_service.cli import api_keys
from hookline_service.cli.caller import typed
from hookline_service.cli.failure import CommandError
from hookline_service.cli.node import read_settings
from hookline_service.cli.progress import Progress
from hookline_service.config import Role
from hookline_service.domain.caller import calling


def run(asked: argparse.Namespace) -> int:
    """Do what the second word says."""
    if action := _OF_A_SERVICE.get(asked.action):
        return action(asked)
    try:
        with calling(typed(f"keys {asked.action}")):
            return _OF_THE_DATABASE[asked.action](asked)
    except StartError as error:
        raise CommandError(str(error)) from error


def _rotate(_asked: argparse.Namespace) -> int:
    settings = read_settings(Role.KEYS, {})
    writing, *reading = (key_id.hex() for key_id in key_ids(settings))
    print(f"writes with {writing}" + "".join(f", reads {key_id} too" for key_id in reading))
    report = asyncio.run(rotate_master(settings, Progress().tell))
    print(
        f"sealed anew: {report.data_keys:,} data keys, {report.secrets:,} secrets without one,"
        f" {report.deployment_keys:,} keys of the deployment"
    )
    for line in _uses(report, key_ids(settings)):
        print(line)
    for reason in report.unreadable:
        print(f"hookline: left as it was: {reason}", file=sys.stderr)
    return 1 if report.unreadable else 0


def _uses(report: RotationReport, keys: Sequence[bytes]) -> list[str]:
    """Which keys are still needed, and which may go."""
    used = {use.key_id: use for use in report.used}
    lines = [f"in use: {_use(use)}" for use in report.used]
    lines += [
        f"not in use: {key_id.hex()}; it may go from HOOKLINE_MASTER_KEY, once no node has it first"
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
        raise CommandError(f"{text!r} is no key id: 16 hexadecimal digits, as `serve` names it")
    key_id = bytes.fromhex(text)
    if key_id in key_ids(settings):
        raise CommandError(f"{text} is in HOOKLINE_MASTER_KEY: it is not lost")
    if not asyncio.run(forget_master(settings, key_id)):
        raise CommandError(f"nothing was sealed with {text}", code=1)
    print(
        f"nodes start without {text} now; rotate the secret of each subscription that is held, and"
        " make API keys anew where none is let in"
    )
    return 0


_OF_A_SERVICE: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": api_keys.show,
    "revoke": api_keys.revoke,
}
"""Asked of a service, which tells the audit log itself."""
_OF_THE_DATABASE: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "create": api_keys.create,
    "rotate-master": _rotate,
    "forget-master": _forget,
}
