"""What `hookline listen` shows of what comes: whatever it is, and harmlessly."""

import pytest

from service.cli import listen
from service.cli.receiver import Arrival


@pytest.mark.parametrize(
    "body, shown",
    [
        (b'{"a":1}', '{\n  "a": 1\n}'),
        (b"\x1b[31mred\nblue", "\\x1b[31mred\nblue"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 5_000, "[" * 2_000),
        (b"", ""),
    ],
)
def test_a_body(body: bytes, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    arrival = Arrival(
        receiver="listen",
        at_s=0.0,
        headers={"webhook-id": "evt_1"},
        body=body,
        webhook=None,
        fault="",
        status=200,
    )
    listen.show(arrival)
    head, _, told = capsys.readouterr().out.lstrip("\n").partition("\n")
    assert (head, told) == ("evt_1  not verified: no --secret  -> 200", f"{shown}\n")
