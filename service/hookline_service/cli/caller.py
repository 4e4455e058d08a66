"""Who types a command that works on the database itself, as the audit log tells it.

There is nobody to ask who that is: whoever has the database's password and the master key is the
service. What account and which machine it was is told beside, by the machine's own word.
"""

from __future__ import annotations

import getpass
import socket
from dataclasses import replace

from hookline_service.domain.caller import SERVICE, Caller


def typed(command: str) -> Caller:
    """The service, from `USER@HOST`, by a command such as `keys create`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        user = "unknown"
    return replace(
        SERVICE, method=f"hookline {command}", remote_address=f"{user}@{socket.gethostname()}"
    )
