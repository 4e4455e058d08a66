"""The one port of several processes, held for them while they come and go.

The kernel deals connections out to all sockets that listen on a port with SO_REUSEPORT. With it a
stranger of the same user would share the port unnoticed, too. So it is bound here first without,
which fails where anybody has it, and made to be shared only then; bound and not listening, it gets
no connection, and keeps the port while a process is started anew.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from hookline_service.app import StartError
from hookline_service.config import ListenAddress


@contextmanager
def reserved(listen: ListenAddress) -> Iterator[ListenAddress]:
    """Hold a port while inside; the address with its number, where any was asked for.

    Raises `StartError` where it is taken, or no address of this machine.
    """
    with ExitStack() as stack:
        try:
            port = listen.port
            for family, address in _addresses_of(listen):
                held = stack.enter_context(_bind(family, (address, port)))
                port = held.getsockname()[1]
        except OSError as error:
            raise StartError(
                f"cannot listen on {listen}: {error.strerror or error}; name another address with"
                " --listen or HOOKLINE_LISTEN"
            ) from error
        yield replace(listen, port=port)


def _addresses_of(listen: ListenAddress) -> list[tuple[socket.AddressFamily, str]]:
    """All addresses of a name: gRPC listens on each, as far as this machine has it."""
    found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    addresses: list[tuple[socket.AddressFamily, str]] = [
        (family, str(address[0])) for family, _, _, _, address in found
    ]
    return [one for one in addresses if _is_ours(*one)] or addresses[:1]


def _is_ours(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def _bind(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    try:
        held = _bound(family, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Perhaps connections of an earlier process still linger there; a listener does not pass.
        held = _bound(family, address, may_linger=True)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return held


def _bound(
    family: socket.AddressFamily, address: tuple[str, int], *, may_linger: bool = False
) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(may_linger))
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
