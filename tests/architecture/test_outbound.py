"""Every outbound connection of the service: the call, and whether a tenant chooses its address.

Addresses that a tenant chooses are reached only from `targets/http`, whose dialer applies the
egress policy. All others come from an operator. A new one is a decision, made here.
"""

import ast
import pathlib
from collections.abc import Iterator

from tests.architecture.repository import PACKAGE, python_files, tree

TENANT = "a tenant chooses the address"
OPERATOR = "an operator chooses the address, in a setting or on the command line"
OUTBOUND = {
    "targets/http/dialer.py: sock_connect": TENANT,
    "targets/http/dialer.py: create_connection": TENANT,
    "targets/http/resolver.py: getaddrinfo": TENANT,
    "supervisor/port.py: getaddrinfo": OPERATOR,
    "identity/issuer_keys.py: HTTPConnection": OPERATOR,
    "identity/issuer_keys.py: HTTPSConnection": OPERATOR,
    "identity/issuer_keys.py: connect": OPERATOR,
    "store/connecting.py: connect": OPERATOR,
    "store/database.py: connect": OPERATOR,
    "store/database.py: create_pool": OPERATOR,
    "store/embedded/server.py: connect": OPERATOR,
    "store/migrations.py: connect": OPERATOR,
}
CALLS = {
    "HTTPConnection", "HTTPSConnection", "connect", "connect_ex", "create_connection",
    "create_datagram_endpoint", "create_pool", "create_unix_connection", "getaddrinfo",
    "gethostbyname", "open_connection", "open_unix_connection", "sendto", "sock_connect",
    "sock_sendto", "urlopen", "urlretrieve",
}  # fmt: skip
MODULES = {
    "aiohttp", "ftplib", "imaplib", "poplib", "requests", "smtplib", "telnetlib", "urllib3",
    "urllib.request", "xmlrpc.client",
}  # fmt: skip


def connections(path: str, module: ast.Module) -> Iterator[str]:
    """Yield the calls and imports of a file that may reach another machine."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in CALLS:
                yield f"{path}: {name}"
        elif isinstance(node, ast.Import):
            yield from (f"{path}: {alias.name}" for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"{path}: {node.module}"


def test_every_outbound_connection_is_listed() -> None:
    service = [path for path in python_files() if path.is_relative_to(PACKAGE)]
    found = {
        one for path in service for one in connections(str(path.relative_to(PACKAGE)), tree(path))
    }
    assert found == set(OUTBOUND)


def test_addresses_of_tenants_are_reached_from_one_package() -> None:
    packages = {
        str(pathlib.PurePosixPath(one).parent) for one, by in OUTBOUND.items() if by == TENANT
    }
    assert packages == {"targets/http"}


def test_a_new_outbound_connection_is_found() -> None:
    code = "import urllib.request\nfrom requests import get\nasyncio.open_connection(host, 80)"
    assert list(connections("x.py", ast.parse(code))) == [
        "x.py: urllib.request",
        "x.py: requests",
        "x.py: open_connection",
    ]
