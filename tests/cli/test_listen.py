"""`hookline listen` shows any request, and escapes what a terminal would interpret."""

import pytest

from hookline_service.cli import listen
from hookline_service.cli.receiver import Arrival


def arrival(webhook_id: str, body: bytes) -> Arrival:
    return Arrival(
        receiver="listen",
        at_s=0.0,
        headers={"webhook-id": webhook_id},
        body=body,
        webhook=None,
        fault="",
        status=200,
    )


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
def test_body_is_printed(body: bytes, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    listen.show(arrival("evt_1", body))
    head, _, printed = capsys.readouterr().out.lstrip("\n").partition("\n")
    assert (head, printed) == ("evt_1  not verified: no --secret  -> 200", f"{shown}\n")


def test_an_event_id_with_control_characters_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    listen.show(arrival("a\x1b[2Jb", b""))
    assert "a\\x1b[2Jb  not verified" in capsys.readouterr().out
