"""API keys as an operator meets them: made in the database, shown by grpcurl, revoked."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.processes import Node, run_hookline, running_dev
from tests.e2e.test_serve import settings
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SERVICE = "hookline.v1.OperationsService/GetStatus"


class Guarded:
    """A `hookline serve` that asks for keys, and clients of it."""

    def __init__(self, node: Node, variables: dict[str, str], grpcurl: pathlib.Path) -> None:
        self.target = node.target
        self._variables = variables
        self._grpcurl = grpcurl

    def hookline(self, *arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
        shown = {"HOOKLINE_API_KEY": token, "HOOKLINE_SERVER": self.target}
        return run_hookline(*arguments, variables=self._variables | shown)

    def create(self, *arguments: str) -> str:
        made = self.hookline("keys", "create", *arguments)
        assert made.returncode == 0, made.stderr
        assert re.fullmatch(r"hk_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}\n", made.stdout)
        assert made.stdout.strip() not in made.stderr
        return made.stdout.strip()

    def call(
        self, method: str, request: str = "", token: str = ""
    ) -> subprocess.CompletedProcess[str]:
        header = ("-H", f"authorization: Bearer {token}") if token else ()
        data = ("-d", request) if request else ()
        return subprocess.run(
            [self._grpcurl, "-plaintext", *header, *data, self.target, method],
            env={"PATH": os.environ["PATH"]},
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def serve(database_url: str, grpcurl: pathlib.Path) -> Iterator[Guarded]:
    variables = settings(database_url) | {"HOOKLINE_AUTH": "on"}
    with Node(["serve"], variables) as node:
        node.ready()
        yield Guarded(node, variables, grpcurl)
        assert node.stop() == 0


async def test_a_key_opens_what_nothing_else_opens_until_it_is_revoked(serve: Guarded) -> None:
    token = serve.create("--scope", "operate", "--name", "on call")
    for wrong in ("", "hk_a1B2c3D4e5F6_" + "0" * 43, token[:-1]):
        for asked in ("list", SERVICE):
            refused = serve.call(asked, token=wrong)
            assert refused.returncode != 0
            assert "the caller is not authenticated" in refused.stderr
    assert serve.hookline("health").stdout == "SERVING\n"
    assert "hookline.v1.EventService" in serve.call("list", token=token).stdout
    assert "nodeId" in serve.call(SERVICE, token=token).stdout

    denied = serve.call("hookline.v1.EventService/PublishEvents", token=token)
    assert "PermissionDenied" in denied.stderr
    assert "PUBLISH" in denied.stderr

    assert serve.hookline("status", token=token).returncode == 0
    unknown = serve.hookline("status")
    assert unknown.returncode == 1
    assert "set HOOKLINE_API_KEY" in unknown.stderr
    admin = serve.create("--scope", "admin", "--expires-in", "90d")
    listed = serve.hookline("keys", "list", token=admin)
    first, second = listed.stdout.splitlines()
    assert re.fullmatch(r"apiKeys/\S+  admin  all tenants  ends in 90 d  \S.*", first)
    assert re.fullmatch(r"apiKeys/\S+  operate  all tenants  valid  used .*  on call", second)
    ended = serve.hookline("keys", "revoke", token.split("_")[1], token=admin)
    assert "REVOKED" in ended.stdout
    again = serve.hookline("keys", "revoke", token, token=admin)
    assert again.stdout == ended.stdout, (
        "by its token, too: that is what is at hand of a leaked one"
    )

    def is_shut_out() -> bool:
        return "not authenticated" in serve.hookline("status", token=token).stderr

    await until(is_shut_out, "the key is revoked")
    for text in (listed.stdout, ended.stdout, denied.stderr):
        assert token not in text
        assert admin not in text


def test_a_key_of_one_tenant_reveals_nothing_of_another(serve: Guarded) -> None:
    token = serve.create("--scope", "manage", "--tenant", "default")
    get = "hookline.v1.TenantService/GetTenant"
    own = serve.call(get, '{"name": "tenants/default"}', token)
    assert '"name": "tenants/default"' in own.stdout
    other = serve.call(get, '{"name": "tenants/other"}', token)
    assert "there is no tenants/other" in other.stderr
    listed = serve.call("hookline.v1.TenantService/ListTenants", token=token)
    assert listed.stdout.count('"name"') == 1
    reader = serve.create("--scope", "operate", "--tenant", "default")
    by_id = serve.hookline("event", "evt_01m85t4f3af31a4kh4hhqf8qqm", token=reader)
    assert "give the full name, as tenants/ID/events/evt_" in by_id.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--scope", "admin", "--tenant", "no body"], "--tenant must be"),
        (["--scope", "admin", "--tenant", "missing"], "there is no tenants/missing"),
        (["--scope", "admin", "--expires-in", "soon"], "--expires-in"),
        (["--scope", "admin", "--name", "x" * 257], "--name has 257"),
        (["--scope", "everything"], "invalid choice"),
        ([], "--scope"),
    ],
    ids=["tenant's grammar", "tenant", "expiry", "name", "scope", "no scope"],
)
def test_wrong_key_arguments_are_reported_in_a_sentence(
    database_url: str, arguments: list[str], said: str
) -> None:
    made = run_hookline("keys", "create", *arguments, variables=settings(database_url))
    assert made.returncode == 2
    assert said in made.stderr
    assert "Traceback" not in made.stderr
    assert made.stdout == ""


def test_a_key_is_made_in_the_database_of_a_dev_that_runs_and_of_none_other(
    data_dir: pathlib.Path,
) -> None:
    command = ["keys", "create", "--scope", "publish", "--data-dir", str(data_dir)]
    refused = run_hookline(*command)
    assert refused.returncode == 2
    assert "no `hookline dev` runs in" in refused.stderr
    assert not data_dir.exists()
    with running_dev(data_dir, HOOKLINE_AUTH="on") as dev:
        made = run_hookline(*command)
        assert made.returncode == 0, made.stderr
        done = run_hookline(
            "status",
            variables={"HOOKLINE_SERVER": dev.target, "HOOKLINE_API_KEY": made.stdout.strip()},
        )
        assert "needs the scope OPERATE" in done.stderr
        assert dev.stop() == 0
    both = {"HOOKLINE_API_KEY": "hk_x", "HOOKLINE_TOKEN": "ey"}
    assert "both set" in run_hookline("status", variables=both).stderr
