"""What can be typed, and what `--help` says. Imports a command's code only when it runs."""

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
of HOOKLINE_DATABASE_URL), no authentication, targets on this machine allowed. Prints what to type
next, and `ready` on a line of its own once it serves. Ctrl-C or SIGTERM stops it cleanly, its
Postgres included; a second one does not wait for deliveries that are under way.
"""
_SERVE = """\
Runs Hookline for production, on HOOKLINE_DATABASE_URL, whose schema `hookline migrate` brought up
to date: HOOKLINE_WORKERS processes behind one port, by default one for each core. Everything is set
by HOOKLINE_* (docs/settings.md); what is wrong with them is told at once. SIGTERM hands everything
over and exits 0.
"""
_MIGRATE = """\
Brings the schema of HOOKLINE_DATABASE_URL up to this version: safe to repeat, and from several
machines at once. The previous version goes on running meanwhile. Once none of its nodes is left,
`--post` removes what only they needed.
"""
_KEYS = """\
Keeps two kinds of keys: API keys, which callers show, and master keys, which seal every secret in
the database. What works on the database itself needs no node, but HOOKLINE_DATABASE_URL and the
HOOKLINE_MASTER_KEY that nodes have.
"""
_CREATE_KEY = """\
Makes an API key, in the database itself: so the first one can be made. Prints its token, this
once; callers send it as `authorization: Bearer hk_...`. Without HOOKLINE_DATABASE_URL the database
is that of a `hookline dev` that runs in the data directory.
"""
_LIST_KEYS = "Lists API keys, newest first: what they may, for whom, until when, and whether used."
_REVOKE_KEY = "Ends an API key, for good, within 5 seconds on every node."
_CALLER = """\
The caller is known by HOOKLINE_API_KEY, by HOOKLINE_TOKEN (of an issuer), or by --cert.
"""
_ROTATE_MASTER = """\
Seals anew, with the first key of HOOKLINE_MASTER_KEY, what its other keys have sealed. Nodes that
have all of these keys serve on meanwhile. Safe to repeat, and to cut off. Tells at the end which
keys are still in use: one that is not may go.
"""
_FORGET_MASTER = """\
Lets nodes start without a master key that is lost for good. What it sealed stays in the database,
and opens again if the key is found. Until then each subscription whose secret it sealed is held:
RotateSigningSecret gives it a new one, UpdateSubscription new secret headers and certificates.
"""
_AUDIT = """\
Looks after the audit log, on HOOKLINE_DATABASE_URL itself, or on the database of the `hookline dev`
that runs in the data directory.
"""
_VERIFY = """\
Walks the audit log from its first entry to its last, and checks that each follows from the one
before. Says OK, how many there are, and the head of the chain; or which entry was changed or is
missing, and exits 1. Note the head and keep it elsewhere: with `--head` the next run also tells
whether the log was rewritten as a whole, or cut off at its end. With the master key, or `--key`,
it also checks the heads that nodes have signed: what was signed and is no more, or is otherwise, is
told, and what no node has signed in time.
"""
_EXPORT = """\
Writes the audit log to standard output as JSON Lines, oldest entry first, each with all that its
hash is over, and then the newest head that a node has signed: `{"checkpoint": NOTE}`. Keep it where
those who keep the database cannot change it.
"""
_DEMO = """\
Starts a service and two small receivers, publishes, and shows each webhook as it arrives, each
retry and each final state. Needs nothing, leaves nothing behind, ends by itself; exits 1 if
anything that should have happened did not.
"""
_STATUS = "Tells at a glance what runs, how much waits, and where it is stuck."
_HEALTH = """\
Asks whether the service serves, as a load balancer does, and needs no key: prints what it answers,
and exits 0 for SERVING alone.
"""
_EVENT = """\
Tells of one event: where each of its deliveries is, why, and what happens next.
"""
_LISTEN = """\
Runs a small receiver that prints every webhook it gets and answers 200, or what `--answer` says.
With `--secret` it verifies signatures, and answers 401 where none fits.
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line. Each command's namespace has `run`."""
    parser = argparse.ArgumentParser(
        prog="hookline",
        description="Hookline, a webhook engine: events in over gRPC, signed webhooks out.",
        epilog="`hookline COMMAND --help` tells more. To begin: `hookline demo`, `hookline dev`.",
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
    migrate.add_argument("--post", action="store_true", help="also what the last version needed")
    _add_keys_arguments(add("keys", _KEYS, "give and take API keys, rotate the master key"))
    _add_audit_arguments(add("audit", _AUDIT, "verify the audit log"))
    demo = add("demo", _DEMO, "see it work, in a few seconds")
    # A flag and not a variable: HOOKLINE_* are the service's, and it refuses what it does not know.
    demo.add_argument(
        "--break-receiver",
        action="store_true",
        help="let one receiver never recover, and see the demo fail",
    )
    _add_server(add("status", _STATUS, "what runs, how much waits, where it is stuck"))
    _add_server(add("health", _HEALTH, "whether it serves; for a container's health check"))
    event = add("event", _EVENT, "where an event is, why, and what happens next")
    event.add_argument("name", metavar="EVENT", help="evt_…, or tenants/ID/events/evt_…")
    _add_server(event)
    _add_listen_arguments(add("listen", _LISTEN, "a receiver that prints what it gets"))
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
    return command.add_subparsers(
        title="what to do", metavar="ACTION", dest="action", required=True
    )


def _runner(command: str) -> Callable[[argparse.Namespace], int]:
    def run(asked: argparse.Namespace) -> int:
        code: int = importlib.import_module(f"hookline_service.cli.{command}").run(asked)
        return code

    return run


def _add_node_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"HOOKLINE_LISTEN; by default {DEFAULT_SERVER}; port 0 takes any that is free",
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
        help="speak plaintext to another machine, which others may read, the API key too",
    )
    for flag, metavar, variable, text in (
        (
            "--ca",
            "FILE",
            "HOOKLINE_SERVER_CA",
            "PEM: who may have signed the service's certificate",
        ),
        ("--cert", "FILE", "HOOKLINE_CLIENT_CERT", "PEM: a certificate to show the service"),
        ("--key", "FILE", "HOOKLINE_CLIENT_KEY", "PEM: its private key"),
        ("--server-name", "NAME", "HOOKLINE_SERVER_NAME", "what the service's certificate is for"),
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
        help="what it may do; may be given several times; admin may do everything",
    )
    create.add_argument("--tenant", metavar="ID", help="bind it to one tenant; else it is of all")
    create.add_argument("--name", default="", metavar="TEXT", help="what people call it")
    create.add_argument("--expires-in", metavar="90d", help="days or hours; else it never ends")
    create.add_argument("--data-dir", metavar="DIR", help="HOOKLINE_DATA_DIR; of `hookline dev`")
    _add_server(add("list", _LIST_KEYS, "list API keys"))
    revoke = add("revoke", _REVOKE_KEY, "end an API key")
    revoke.add_argument("key_id", metavar="KEY", help="apiKeys/ID, the ID alone, or the token")
    _add_server(revoke)
    add("rotate-master", _ROTATE_MASTER, "seal everything anew, with the first master key")
    forget = add("forget-master", _FORGET_MASTER, "start without a master key that is lost")
    forget.add_argument("key_id", metavar="KEY_ID", help="as the error names it")


def _add_audit_arguments(command: argparse.ArgumentParser) -> None:
    actions = _add_actions(command)
    verify = _add_parser(actions, "verify", _VERIFY, "check that nothing was changed or removed")
    verify.add_argument(
        "--head", metavar="SEQUENCE:HASH", type=_chain_head, help="as an earlier run told it"
    )
    verify.add_argument(
        "--key", type=_verifier_key, help="whose signatures count, as an earlier run told it"
    )
    export = _add_parser(actions, "export", _EXPORT, "write it out, with its newest signed head")
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
        message = f"{text!r} is no key as `verify` tells it: {error}"
        raise argparse.ArgumentTypeError(message) from None


def _sequence(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no sequence")
    return int(text)


def _chain_head(text: str) -> ChainHead:
    match = re.fullmatch(r"([1-9][0-9]{0,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no SEQUENCE:HASH, as `verify` tells it")
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
        help="what to answer; given several times, in turn, the last one from then on",
    )


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port")


def _status(text: str) -> int:
    if text.isascii() and text.isdigit() and 200 <= int(text) <= 599:  # noqa: PLR2004 - final ones
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no status from 200 to 599")
