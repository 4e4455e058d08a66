"""The command line: `hookline dev | serve | migrate | keys | demo | status | health | event | …`.

Owns what a person types and reads. What was asked for goes to standard output, everything else to
standard error. Exit codes: 0 done; 1 it did not work out; 2 asked for wrongly, or impossible here
(one sentence says what to do); 130 interrupted. What asks a service does so through the Python
client, as any other program would; what works on the database itself calls `app`. Nothing here
knows SQL, and HTTP only the small `receiver` of `demo` and `listen`.
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
    # Read when grpc is first imported, which the commands do by themselves. No process forks after.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # By default every stranger whose TLS handshake fails writes a line of his own into the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no reason to fail
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
        # Whoever read our output has gone, as `head` does. Nothing more can be said to him.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code
