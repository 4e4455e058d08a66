"""The port that several processes share, reserved while they are started and restarted.

The kernel distributes connections to all sockets that listen on a port with SO_REUSEPORT. With that
option an unrelated process of the same user could share the port unnoticed. So the port is first
bound without it, which fails if the port is in use, and shared only then. The reserving socket does
not listen: it gets no connection, and keeps the port while a process restarts.
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
    """Reserve a port for the time of the context; yield the address with the port's number.

    Raises `StartError` if the port is in use, or the address is not one of this machine.
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
    """Return all addresses of a host: gRPC listens on each that this machine has."""
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
        # Connections of an earlier process may be in TIME_WAIT; a listener still fails here.
        held = _bound(family, address, reuse_address=True)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return held


def _bound(
    family: socket.AddressFamily, address: tuple[str, int], *, reuse_address: bool = False
) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
