"""Every door by which the service reaches others: a list of where, and of who names whom.

What a tenant names is reached through `targets/http` alone, whose dialer asks the egress policy.
All other doors lead to what an operator named. A new one is a decision, made here.
"""

import ast
import pathlib
from collections.abc import Iterator

from tests.architecture.repository import PACKAGE, python_files, tree

TENANT = "a tenant names whom"
OPERATOR = "an operator names whom, in a setting or on the command line"
DOORS = {
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


def doors(path: str, module: ast.Module) -> Iterator[str]:
    """What a file calls or imports that may reach another machine."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in CALLS:
                yield f"{path}: {name}"
        elif isinstance(node, ast.Import):
            yield from (f"{path}: {alias.name}" for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"{path}: {node.module}"


def test_there_are_no_other_doors() -> None:
    service = [path for path in python_files() if path.is_relative_to(PACKAGE)]
    found = {door for path in service for door in doors(str(path.relative_to(PACKAGE)), tree(path))}
    assert found == set(DOORS)


def test_what_a_tenant_names_is_reached_from_one_room() -> None:
    rooms = {
        str(pathlib.PurePosixPath(door).parent) for door, who in DOORS.items() if who == TENANT
    }
    assert rooms == {"targets/http"}


def test_a_new_door_would_be_seen() -> None:
    code = "import urllib.request\nfrom requests import get\nasyncio.open_connection(host, 80)"
    assert list(doors("x.py", ast.parse(code))) == [
        "x.py: urllib.request",
        "x.py: requests",
        "x.py: open_connection",
    ]
