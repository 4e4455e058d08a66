"""Every socket that listens and every thread that is started, with what bounds it.

A server that takes what comes without a bound uses up the descriptors and the memory of the node.
A new one is a decision, made here.
"""

import ast
from collections.abc import Iterator

from tests.architecture.repository import PACKAGE, python_files, tree

BOUNDED = {
    "api/server.py: add_insecure_port": "HOOKLINE_MAX_CONNECTIONS and its like",
    "api/server.py: add_secure_port": "HOOKLINE_MAX_CONNECTIONS and its like",
    "app/node.py: create_server": "never serves: whether an address is free",
    "cli/receiver.py: start_server": "`hookline listen`: a developer's own, on loopback",
    "store/embedded/server.py: to_thread": "one at a time: starts and stops Postgres",
    "telemetry/scrape_server.py: create_server": "HOOKLINE_PROMETHEUS_MAX_CONNECTIONS",
    "telemetry/scrape_server.py: ThreadPoolExecutor": "one thread",
    "telemetry/outbox.py: Thread": "one, for spans",
    "telemetry/providers.py: Thread": "one, at the end",
    "targets/http/resolver.py: ThreadPoolExecutor": "a fixed number",
    "targets/http/tls.py: to_thread": "asyncio's pool, one for an identity",
    "identity/issuer_keys.py: to_thread": "one at a time",
    "app/source_watchers.py: to_thread": "one at a time",
}
CALLS = {
    "HTTPServer", "Process", "ProcessPoolExecutor", "TCPServer", "Thread", "ThreadPoolExecutor",
    "ThreadingHTTPServer", "add_insecure_port", "add_secure_port", "create_server",
    "create_unix_server", "make_server", "start_http_server", "start_new_thread", "start_server",
    "start_unix_server", "start_wsgi_server", "to_thread",
}  # fmt: skip


def listeners(path: str, module: ast.Module) -> Iterator[str]:
    """What a file calls that listens, or starts a thread."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in CALLS:
                yield f"{path}: {name}"


def test_what_listens_and_every_thread_has_a_bound() -> None:
    service = [path for path in python_files() if path.is_relative_to(PACKAGE)]
    found = {
        one for path in service for one in listeners(str(path.relative_to(PACKAGE)), tree(path))
    }
    assert found == set(BOUNDED)


def test_a_new_one_would_be_seen() -> None:
    code = "start_http_server(9464)\nthreading.Thread(target=run)"
    assert list(listeners("x.py", ast.parse(code))) == ["x.py: start_http_server", "x.py: Thread"]
