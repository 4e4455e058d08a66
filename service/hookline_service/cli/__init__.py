"""The command line: `hookline dev | serve | migrate | keys | demo | status | health | event | …`.

Results go to standard output, everything else to standard error. Exit codes: 0 success; 1 failure;
2 a wrong command line, or a command that is impossible here (the message says what to do); 130
interrupted. Commands that ask a service use the Python client, as any program does; commands that
work on the database itself call `app`. No command contains SQL; only `receiver`, which `demo` and
`listen` run, speaks HTTP.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence

from hookline_service.cli.failure import CommandError
from hookline_service.cli.parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    # grpc reads it when a command first imports it. No process forks after that.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # By default gRPC logs a line for each TLS handshake of a client that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a character the terminal cannot show raises
            stream.reconfigure(errors="backslashreplace")
    parser = make_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        parser.exit(2)
    asked = parser.parse_args(arguments)
    try:
        code: int = asked.run(asked)
    except CommandError as error:
        print(f"hookline: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does: a flush at exit would raise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code
