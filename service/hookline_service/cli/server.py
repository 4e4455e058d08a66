"""Calls to a running service: a client, and its errors as sentences.

`HOOKLINE_API_KEY` and `HOOKLINE_TOKEN` (an issuer's), or the files or commands that hold them, are
read only here; they are not arguments, which every user of the machine can read.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable

from hookline import HooklineClient
from hookline.errors import (
    DeadlineExceededError,
    HooklineError,
    UnauthenticatedError,
    UnavailableError,
)
from hookline.tls import Tls
from hookline_service.cli.failure import CommandError
from hookline_service.config.secret_sources import SecretSourceError, source_of, variables_given

_UNREACHED = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "shows a certificate of an authority that is not trusted here: name it by --ca FILE",
    ),
    (
        "Hostname Verification",
        "shows a certificate for another name: give that name by --server-name NAME",
    ),
    ("WRONG_VERSION_NUMBER", "does not speak TLS: leave --ca, --cert and --server-name out"),
    (
        "Socket closed",
        "closes the connection: it may serve TLS (--ca), or require a certificate (--cert, --key)",
    ),
    ("Failed parsing HTTP/2", "does not answer in gRPC: is it another service's port?"),
)
"""Parts of gRPC's messages about a failed connection, and what each means."""
_CREDENTIALS = ("HOOKLINE_API_KEY", "HOOKLINE_TOKEN")
_SILENT = "its process hangs (so does `hookline health`), or it waits for Postgres, which does"


def ask(asked: argparse.Namespace, questions: Callable[[HooklineClient], Awaitable[int]]) -> int:
    """Connect as the command line says, run a command's calls, and return the exit code."""
    return asyncio.run(_ask(asked, questions))


async def _ask(
    asked: argparse.Namespace, questions: Callable[[HooklineClient], Awaitable[int]]
) -> int:
    target = asked.server
    try:
        client = HooklineClient(
            target,
            token=_token(),
            tls=_tls(asked),
            plaintext=asked.plaintext or None,
            token_in_plaintext=asked.plaintext,
        )
    except ValueError as error:
        raise CommandError(f"{target}: {error}") from error
    except OSError as error:
        raise CommandError(f"{error.filename} cannot be read: {error.strerror}") from error
    async with client:
        try:
            return await questions(client)
        except UnavailableError as error:
            if error.reason:
                raise CommandError(f"{target} answered {error}", code=1) from error
            raise CommandError(_unreached(target, str(error)), code=1) from error
        except DeadlineExceededError as error:
            raise CommandError(f"{target} did not answer in time: {_SILENT}", code=1) from error
        except UnauthenticatedError as error:
            hint = "set HOOKLINE_API_KEY to one (`hookline keys create --help`), or HOOKLINE_TOKEN"
            raise CommandError(f"{target} answered {error}\n  {hint}", code=1) from error
        except HooklineError as error:
            raise CommandError(f"{target} answered {error}", code=1) from error


def _unreached(target: str, message: str) -> str:
    """Return what to do about a failed connection, from the message of gRPC."""
    for part, sentence in _UNREACHED:
        if part in message:
            return f"{target} {sentence}"
    return (
        f"nothing answers at {target}: start `hookline dev`, or name the service with"
        " --server HOST:PORT"
    )


def _token() -> str | None:
    """Return the credential to send; None: none is set."""
    given = [name for name in _CREDENTIALS if variables_given(os.environ, name)]
    if len(given) > 1:
        raise CommandError("HOOKLINE_API_KEY and HOOKLINE_TOKEN are both set: unset one of them")
    if not given:
        return None
    try:
        source = source_of(os.environ, given[0])
        return os.environ[given[0]] if source is None else source.read()
    except SecretSourceError as error:
        raise CommandError(str(error)) from error


def _tls(asked: argparse.Namespace) -> Tls | None:
    """Return the TLS options; None: none is given, and the client decides."""
    if not (asked.ca or asked.cert or asked.key or asked.server_name):
        return None
    if bool(asked.cert) is not bool(asked.key):
        raise CommandError("--cert and --key must be given together: one is missing")
    return Tls(
        ca_file=asked.ca, cert_file=asked.cert, key_file=asked.key, server_name=asked.server_name
    )
