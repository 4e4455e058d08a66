"""Watched files: a valid change is used at once; a problem is checked twice and reported once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hookline_service.identity.files import MAX_FILE_BYTES, FollowedFiles, SourceError, read_file

SETTING = "HOOKLINE_TLS_CERT"


@dataclass(frozen=True)
class Pair:
    """What two files say, which have to agree."""

    left: bytes
    right: bytes

    @property
    def summary(self) -> str:
        return self.left.decode()

    @property
    def expires_at(self) -> datetime | None:
        return None


class Files:
    """Two files, and how often they were read."""

    def __init__(self, directory: Path) -> None:
        self.left, self.right = directory / "left", directory / "right"
        self.reads = 0
        self.write(b"one", b"one")

    def write(self, left: bytes | None = None, right: bytes | None = None) -> None:
        for path, content in ((self.left, left), (self.right, right)):
            if content is not None:
                fresh = path.with_suffix(".new")
                fresh.write_bytes(content)
                fresh.replace(path)

    def read(self) -> Pair:
        self.reads += 1
        left, right = read_file(SETTING, self.left), read_file(SETTING, self.right)
        if left != right:
            raise SourceError(f"{left.decode()} does not go with {right.decode()}")
        return Pair(left, right)

    def followed(self) -> FollowedFiles[Pair]:
        return FollowedFiles(SETTING, [self.left, self.right], self.read)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_unchanged_file_is_read_once(files: Files) -> None:
    followed = files.followed()
    for _ in range(3):
        followed.look()
    assert files.reads == 1
    assert followed.state().summary == "one"
    assert followed.state().problem == ""


def test_changed_file_is_used_after_the_next_check(files: Files) -> None:
    followed = files.followed()
    since = followed.state().loaded_at
    assert since is not None
    files.write(b"two", b"two")
    with capture_logs() as logs:
        followed.look()
    assert followed.current == Pair(b"two", b"two")
    loaded_at = followed.state().loaded_at
    assert loaded_at is not None
    assert loaded_at > since
    assert [line["event"] for line in logs] == ["source_reloaded"]


def test_inconsistent_files_between_two_writes_are_not_reported(files: Files) -> None:
    followed = files.followed()
    with capture_logs() as logs:
        files.write(left=b"two")
        followed.look()
        assert followed.current.left == b"one"
        files.write(right=b"two")
        followed.look()
    assert followed.current.left == b"two"
    assert [line["event"] for line in logs] == ["source_reloaded"]


def test_lasting_problem_is_reported_once_and_shown_until_it_is_fixed(files: Files) -> None:
    followed = files.followed()
    files.write(left=b"two")
    with capture_logs() as logs:
        for _ in range(4):
            followed.look()
        files.write(left=b"two")  # written anew, and as wrong as before
        for _ in range(4):
            followed.look()
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("source_rejected", "two does not go with one")
    ]
    assert followed.current.left == b"one"
    assert followed.state().problem == "two does not go with one"
    files.write(left=b"one")
    followed.look()
    assert followed.state().problem == ""


def test_missing_file_is_reported_and_its_last_content_stays_in_use(files: Files) -> None:
    followed = files.followed()
    files.right.unlink()
    followed.look()
    followed.look()
    assert followed.current.left == b"one"
    assert "cannot be read: No such file" in followed.state().problem


def test_rewritten_equal_content_is_no_change(files: Files) -> None:
    followed = files.followed()
    before = followed.current
    files.write(b"one", b"one")
    with capture_logs() as logs:
        followed.look()
    assert files.reads == 2
    assert followed.current is before
    assert logs == []


def test_replaced_symbolic_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: the files are links through a directory that is a link."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        Files(tmp_path / name).write(name.encode(), name.encode())
        for path in (tmp_path / name).iterdir():
            os.utime(path, (0, 0))  # equal but for their inodes
    (tmp_path / "data").symlink_to("old")
    files = Files.__new__(Files)
    files.left, files.right, files.reads = tmp_path / "data/left", tmp_path / "data/right", 0
    followed = files.followed()
    (tmp_path / "fresh").symlink_to("new")
    (tmp_path / "fresh").replace(tmp_path / "data")
    followed.look()
    assert followed.current.left == b"new"


def test_file_written_during_the_read_is_read_again(files: Files) -> None:
    followed = files.followed()
    read = files.read

    def read_slowly() -> Pair:
        pair = read()
        files.write(b"three", b"three")
        return pair

    followed._read = read_slowly  # noqa: SLF001 - where the writer comes in between
    files.write(b"two", b"two")
    followed.look()
    assert followed.current.left == b"one"
    followed._read = read  # noqa: SLF001
    followed.look()
    assert followed.current.left == b"three"


def test_endless_file_is_rejected(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(SourceError, match="larger than 1,048,576 bytes"):
        read_file(SETTING, large)
    large.write_bytes(bytes(MAX_FILE_BYTES))
    assert len(read_file(SETTING, large)) == MAX_FILE_BYTES
