"""The arguments and the help of each command. Imports a command's code only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable
from functools import partial

from hookline_service import VERSION
from hookline_service.domain.audit import ChainHead

DEFAULT_SERVER = "127.0.0.1:50051"

_DEV = """\
Runs Hookline for development: one process, an embedded Postgres in the data directory (or the one
of HOOKLINE_DATABASE_URL), no authentication, targets on this machine allowed. Prints commands to
try, and `ready` on a line of its own once it serves. Ctrl-C or SIGTERM stops it and its
Postgres gracefully; a second one does not wait for deliveries in flight.
"""
_SERVE = """\
Runs Hookline for production, on HOOKLINE_DATABASE_URL, whose schema `hookline migrate` brought up
to date: HOOKLINE_WORKERS processes behind one port, by default one for each core. Everything is set
by HOOKLINE_* (docs/settings.md); all wrong settings are reported at once. SIGTERM hands the buckets
over to other nodes and exits 0.
"""
_MIGRATE = """\
Migrates the schema of HOOKLINE_DATABASE_URL to this version. It is safe to repeat, and to run on
several machines at once. Nodes of the previous version keep running. Once none of them is left,
`--post` removes what only they needed.
"""
_KEYS = """\
Manages API keys, which callers send, and master keys, which encrypt every secret in the database.
`create`, `rotate-master` and `forget-master` work on the database itself: they need no node, but
the HOOKLINE_DATABASE_URL and HOOKLINE_MASTER_KEY of the nodes.
"""
_CREATE_KEY = """\
Creates an API key in the database itself, so that the first one needs none. Prints its token, only
once; callers send it as `authorization: Bearer hk_...`. Without HOOKLINE_DATABASE_URL the database
is that of the `hookline dev` that runs in the data directory.
"""
_LIST_KEYS = "Lists API keys, newest first: scopes, tenant, state, expiry, last use."
_REVOKE_KEY = "Revokes an API key permanently, within 5 seconds on every node."
_CALLER = """\
Authentication: HOOKLINE_API_KEY, HOOKLINE_TOKEN (of an issuer), or --cert.
"""
_ROTATE_MASTER = """\
Encrypts again, with the first key of HOOKLINE_MASTER_KEY, what its other keys have encrypted. Nodes
that have all of these keys keep serving. It is safe to repeat, and to interrupt. Prints at the end
which keys are still in use: one that is not can be removed.
"""
_FORGET_MASTER = """\
Lets nodes start without a lost master key. What it encrypted stays in the database, and can be read
again if the key is found. Until then each subscription whose secret it encrypted is held:
RotateSigningSecret gives it a new one, UpdateSubscription new secret headers and certificates.
"""
_AUDIT = """\
Verifies or exports the audit log, in HOOKLINE_DATABASE_URL itself, or in the database of the
`hookline dev` that runs in the data directory.
"""
_VERIFY = """\
Verifies the hash chain of the audit log from its first entry to its last. Prints OK, the number of
entries and the head of the chain; or which entry was changed or is missing, and exits 1. Note the
head and keep it elsewhere: with `--head` the next run also detects a log that was rewritten as a
whole, or truncated. With the master key, or `--key`, it also verifies the checkpoints that nodes
have signed: it reports a signed entry that was changed or removed, and an entry that no node has
signed in time.
"""
_EXPORT = """\
Writes the audit log to standard output as JSON Lines, oldest entry first, each with all fields that
its hash covers, and then the newest signed checkpoint: `{"checkpoint": NOTE}`. Store it where the
administrators of the database cannot change it.
"""
_DEMO = """\
Starts a service and two small receivers, publishes, and shows each webhook as it arrives, each
retry and each final state. Needs no setup, removes its data and ends by itself; exits 1 if an
expectation is not met.
"""
_STATUS = "Shows the nodes, the backlog, and the lanes with most deliveries queued."
_HEALTH = """\
Asks gRPC's health service, as a load balancer does; needs no key. Prints the answer, and exits 0
only for SERVING.
"""
_EVENT = """\
Shows one event: the state of each of its deliveries, its attempts, and what happens next.
"""
_LISTEN = """\
Runs a small receiver that prints every webhook it gets and answers 200, or the statuses of
`--answer`. With `--secret` it verifies signatures, and answers 401 if none is valid.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `run` of the parsed namespace runs the command."""
    parser = argparse.ArgumentParser(
        prog="hookline",
        description="Hookline, a webhook engine: events in over gRPC, signed webhooks out.",
        epilog="`hookline COMMAND --help` shows its options. Start with `hookline demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hookline {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, short: str) -> argparse.ArgumentParser:
        command = _add_parser(commands, name, text, short)
        command.set_defaults(run=_runner(name))
        return command

    dev = add("dev", _DEV, "run it on this machine, with a Postgres of its own")
    _add_node_arguments(dev)
    dev.add_argument("--data-dir", metavar="DIR", help="HOOKLINE_DATA_DIR; by default ./.hookline")
    _add_node_arguments(add("serve", _SERVE, "run it for production"))
    migrate = add("migrate", _MIGRATE, "bring the database's schema up to date")
    migrate.add_argument(
        "--post", action="store_true", help="also remove what only the previous version needed"
    )
    _add_keys_arguments(add("keys", _KEYS, "create and revoke API keys, rotate the master key"))
    _add_audit_arguments(add("audit", _AUDIT, "verify and export the audit log"))
    demo = add("demo", _DEMO, "see it work, in a few seconds")
    # A flag and not a variable: the service refuses unknown HOOKLINE_* variables.
    demo.add_argument(
        "--break-receiver",
        action="store_true",
        help="let one receiver fail every time, so that the demo fails",
    )
    _add_server(add("status", _STATUS, "nodes, backlog, busiest lanes"))
    _add_server(add("health", _HEALTH, "whether it serves; for a container's health check"))
    event = add("event", _EVENT, "the deliveries and attempts of an event, and what happens next")
    event.add_argument("name", metavar="EVENT", help="evt_…, or tenants/ID/events/evt_…")
    _add_server(event)
    _add_listen_arguments(add("listen", _LISTEN, "run a receiver that prints webhooks"))
    return parser


def _add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    short: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=short,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_actions(
    command: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return command.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)


def _runner(command: str) -> Callable[[argparse.Namespace], int]:
    def run(asked: argparse.Namespace) -> int:
        code: int = importlib.import_module(f"hookline_service.cli.{command}").run(asked)
        return code

    return run


def _add_node_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"HOOKLINE_LISTEN; by default {DEFAULT_SERVER}; port 0: any free one",
    )
    command.add_argument("--stop-with-input", action="store_true", help=argparse.SUPPRESS)
    command.add_argument("--worker", metavar="PLACE", default="", help=argparse.SUPPRESS)


def _add_server(command: argparse.ArgumentParser) -> None:
    command.epilog = _CALLER
    command.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("HOOKLINE_SERVER", DEFAULT_SERVER),
        help=f"where Hookline serves; by default HOOKLINE_SERVER or {DEFAULT_SERVER}",
    )
    command.add_argument(
        "--plaintext",
        action="store_true",
        help="use plaintext to another machine: the network can read everything, the API key too",
    )
    for flag, metavar, variable, text in (
        (
            "--ca",
            "FILE",
            "HOOKLINE_SERVER_CA",
            "PEM: the authority of the service's certificate",
        ),
        ("--cert", "FILE", "HOOKLINE_CLIENT_CERT", "PEM: a certificate to show the service"),
        ("--key", "FILE", "HOOKLINE_CLIENT_KEY", "PEM: its private key"),
        ("--server-name", "NAME", "HOOKLINE_SERVER_NAME", "the name in the service's certificate"),
    ):
        command.add_argument(
            flag,
            metavar=metavar,
            default=os.environ.get(variable) or None,
            help=f"{text}; by default {variable}",
        )


def _add_keys_arguments(command: argparse.ArgumentParser) -> None:
    add = partial(_add_parser, _add_actions(command))
    create = add("create", _CREATE_KEY, "make an API key")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=("publish", "consume", "manage", "operate", "admin"),
        help="what it may do; may be repeated; admin includes all others",
    )
    create.add_argument("--tenant", metavar="ID", help="restrict it to one tenant; by default all")
    create.add_argument("--name", default="", metavar="TEXT", help="a display name")
    create.add_argument(
        "--expires-in", metavar="90d", help="days or hours; by default it does not expire"
    )
    create.add_argument("--data-dir", metavar="DIR", help="HOOKLINE_DATA_DIR; of `hookline dev`")
    _add_server(add("list", _LIST_KEYS, "list API keys"))
    revoke = add("revoke", _REVOKE_KEY, "revoke an API key")
    revoke.add_argument("key_id", metavar="KEY", help="apiKeys/ID, the ID alone, or the token")
    _add_server(revoke)
    add("rotate-master", _ROTATE_MASTER, "encrypt everything again with the first master key")
    forget = add("forget-master", _FORGET_MASTER, "start without a master key that is lost")
    forget.add_argument("key_id", metavar="KEY_ID", help="as the error names it")


def _add_audit_arguments(command: argparse.ArgumentParser) -> None:
    actions = _add_actions(command)
    verify = _add_parser(actions, "verify", _VERIFY, "verify that no entry was changed or removed")
    verify.add_argument(
        "--head", metavar="SEQUENCE:HASH", type=_chain_head, help="as an earlier run printed it"
    )
    verify.add_argument(
        "--key", type=_verifier_key, help="the verifier key, as an earlier run printed it"
    )
    export = _add_parser(
        actions, "export", _EXPORT, "write it to standard output, with its newest checkpoint"
    )
    export.add_argument(
        "--behind",
        metavar="SEQUENCE",
        type=_sequence,
        default=0,
        help="only entries after this one; by default all",
    )
    for action in (verify, export):
        action.add_argument(
            "--data-dir", metavar="DIR", help="HOOKLINE_DATA_DIR; by default ./.hookline"
        )


def _verifier_key(text: str) -> object:
    from hookline_service.store.audit_checkpoints import CheckpointVerifier

    try:
        return CheckpointVerifier.parse(text)
    except ValueError as error:
        message = f"{text!r} is not a key as `verify` prints it: {error}"
        raise argparse.ArgumentTypeError(message) from None


def _sequence(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a sequence number")
    return int(text)


def _chain_head(text: str) -> ChainHead:
    match = re.fullmatch(r"([1-9][0-9]{0,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SEQUENCE:HASH, as `verify` prints it")
    return ChainHead(int(match[1]), bytes.fromhex(match[2]))


def _add_listen_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--port", type=_port, default=8080, help="by default 8080; 0: any")
    command.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="whsec_…",
        help="or a public key, whpk_…; may be given twice",
    )
    command.add_argument(
        "--answer",
        type=_status,
        action="append",
        metavar="STATUS",
        help="the status to answer with; several are used in turn, the last one is repeated",
    )


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")


def _status(text: str) -> int:
    if text.isascii() and text.isdigit() and 200 <= int(text) <= 599:  # noqa: PLR2004 - final ones
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a status from 200 to 599")
