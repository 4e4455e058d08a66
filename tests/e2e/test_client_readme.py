"""The examples of the client's README, run one after the other as they stand."""

import ast
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import standardwebhooks

from tests.architecture.repository import ROOT
from tests.e2e.processes import Dev

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Request:
    """What a receiver's framework hands over."""

    headers: dict[str, str]
    body: bytes


def signed_request() -> Request:
    now, body = datetime.now(UTC), b'{"type":"order.created","data":{}}'
    signature = standardwebhooks.Webhook(SECRET).sign("evt_1", now, body.decode())
    return Request(
        {
            "Webhook-Id": "evt_1",
            "Webhook-Timestamp": str(int(now.timestamp())),
            "Webhook-Signature": signature,
        },
        body,
    )


def run(block: str, namespace: dict[str, Any]) -> Awaitable[None] | None:
    """Run a block that may await; what is left of it to be awaited."""
    code: Any = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    left: Awaitable[None] | None = eval(code, namespace)  # noqa: S307 - our own README
    return left


async def test_the_examples_work_as_they_stand(
    dev: Dev, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "clients" / "python" / "README.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"request": None}
    for block in BLOCK.findall(text):
        if "request.headers" in block:
            namespace["request"] = signed_request()
        left = run(block.replace("127.0.0.1:50051", dev.target), namespace)
        if left is not None:
            await left
    done = capsys.readouterr().out.splitlines()
    assert len(done) == 5
    assert re.fullmatch(r"tenants/default/events/evt_\w{26} 0", done[0])
    assert done[1] == "100 events are stored"
    assert done[2].startswith("whsec_")
    assert done[3] == "SUBSCRIPTION_ALREADY_EXISTS"
    assert done[4] == "evt_1 {'type': 'order.created', 'data': {}}"
    assert namespace["status"] == 204
