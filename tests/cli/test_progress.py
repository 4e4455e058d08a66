"""The progress that a long command prints."""

from __future__ import annotations

import pytest

from hookline_service.cli.progress import Progress


def test_progress_is_printed_once_a_second_and_not_by_a_quick_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = 100.0
    progress = Progress(lambda: now_s)
    for done in range(2_500):
        now_s += 0.001
        progress.show(done, 31_000)
    assert capsys.readouterr().out.splitlines() == ["  999 of 31,000", "  1,999 of 31,000"]
