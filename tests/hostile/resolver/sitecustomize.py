"""Stands in for the operating system's resolver in a node that is attacked through DNS.

Python loads this before anything of the node's. The first label of a name says what comes of it, as
getaddrinfo would report it; other names are the genuine one's.
"""

import itertools
import socket
import threading
from typing import Any

genuine = socket.getaddrinfo
rounds = itertools.count()
never = threading.Event()
TIMES_OUT_S = 5.0
"""glibc's default for one server, asked once."""


def found(*addresses: str) -> list[Any]:
    """The addresses, as getaddrinfo returns them."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


def getaddrinfo(host: bytes | str | None, *args: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
    """What the first label of the name says."""
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or not name.rstrip(".").endswith(".test"):
        return genuine(host, *args, **kwargs)
    kind = name.partition("-")[0]
    if kind == "silent":
        never.wait(TIMES_OUT_S)
    if kind in ("silent", "servfail"):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if kind == "rebinding":
        return found("127.0.0.1" if next(rounds) % 2 else "10.0.0.1")
    if kind == "mixed":
        return found("127.0.0.1", "169.254.169.254", "10.0.0.1")
    if kind == "huge":
        return found(*(f"127.{a}.{b}.1" for a in range(16) for b in range(256)))
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


socket.getaddrinfo = getaddrinfo
