"""`hookline listen`: a receiver on this machine, to see what a subscription sends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json

from hookline.webhook import SecretError, Verifier
from hookline_service.cli.failure import CommandError
from hookline_service.cli.receiver import Arrival, Receiver
from hookline_service.cli.wording import plain

_SHOWN_BODY_BYTES = 2_000


def run(asked: argparse.Namespace) -> int:
    """Listen until interrupted."""
    try:
        verifier = Verifier(asked.secret) if asked.secret else None
    except SecretError as error:
        raise CommandError(f"--secret: {error}") from error
    asyncio.run(_listen(asked, verifier))
    return 0


async def _listen(asked: argparse.Namespace, verifier: Verifier | None) -> None:
    receiver = Receiver("listen", show, answers=asked.answer or [200], port=asked.port)
    receiver.verifier = verifier
    try:
        async with receiver:
            print(f"listening on {receiver.url}; Ctrl-C ends it", flush=True)
            await asyncio.get_running_loop().create_future()
    except OSError as error:
        raise CommandError(f"cannot listen on port {asked.port}: {error.strerror}") from error


def show(arrival: Arrival) -> None:
    """One request: its id, whether it is what it says, and what it brings."""
    verdict = "verified" if arrival.webhook else arrival.fault or "not verified: no --secret"
    line = f"{arrival.webhook_id or 'no webhook-id'}  {verdict}  -> {arrival.status}"
    print(f"\n{plain(line)}")
    body = arrival.body[:_SHOWN_BODY_BYTES].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    print("\n".join(plain(line) for line in body.splitlines()), flush=True)
