"""What a long command says of how far it is."""

from __future__ import annotations

import pytest

from hookline_service.cli.progress import Progress


def test_it_tells_once_a_second_and_a_quick_command_has_nothing_to_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = 100.0
    progress = Progress(lambda: now_s)
    for done in range(2_500):
        now_s += 0.001
        progress.tell(done, 31_000)
    assert capsys.readouterr().out.splitlines() == ["  999 of 31,000", "  1,999 of 31,000"]
