"""Files appear whole or not at all, on systems that cannot open folders, too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dualoptim_cli import files


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where no folder can be opened, and no file flushed that is open for reading only."""
    open_descriptor = os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if Path(path).is_dir() or not flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return open_descriptor(path, flags, *more)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.usefixtures("windows")
def test_files_and_folders_are_written_where_no_folder_can_be_opened(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "model") as aside:
        (aside / "part").mkdir()
        (aside / "part" / "weights").write_bytes(b"1")
    files.write_atomic(tmp_path / "note", "2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "note", "part", "weights"]


def test_a_text_file_is_replaced_as_a_whole_and_keeps_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    files.write_atomic(path, "old", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_folder_takes_its_name_when_it_is_whole_and_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")

    def interrupted() -> None:
        with files.atomic_folder(tmp_path / "model") as aside:
            (aside / "new").write_text("half")
            assert aside.stat().st_mode & 0o077 == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]
    with files.atomic_folder(tmp_path / "model") as aside:
        (aside / "new").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


def test_every_file_and_folder_is_flushed_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: flushed.append(path.name))
    with files.atomic_folder(tmp_path / "model") as aside:
        (aside / "part").mkdir()
        (aside / "part" / "weights").write_bytes(b"1")
    assert flushed == ["part", "weights", ".model.partial", tmp_path.name]
