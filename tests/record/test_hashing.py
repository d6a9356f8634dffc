from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from pathlib import Path

import pytest

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.record import hashing


def test_files_hash_to_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"")
    found = hashing.hash_files(tmp_path, ["deep/b", "a"])
    assert list(found) == ["a", "deep/b"]
    assert found["a"] == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)
    assert found["deep/b"][0] == hashlib.sha256(b"").hexdigest()


def test_digest_of_several_files_is_that_of_the_listing() -> None:
    listing = b"22  a\n11  b\n"
    assert hashing.whole({"b": "11", "a": "22"}) == hashlib.sha256(listing).hexdigest()


def test_links_are_named_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "folder").symlink_to(tmp_path / "outside")
    (run / "file").symlink_to(tmp_path / "outside" / "secret")
    assert hashing.files_below(run) == ["file", "folder"]


def test_only_what_a_model_is_made_of_counts_as_the_model(tmp_path: Path) -> None:
    ours = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    for name in [*ours, "README.md", "dualopt.json", "pytorch_model.bin", ".DS_Store"]:
        (tmp_path / name).write_text("x")
    assert hashing.model_files(tmp_path) == ours


def test_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = hashing.key_file(tmp_path / "run")
    assert path == tmp_path / "run.key"
    old = os.umask(0)
    try:
        key = hashing.make_key(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 32
    assert hashing.read_key(path) == key
    with pytest.raises(FileExistsError):
        hashing.make_key(path)
    assert hashing.make_key(tmp_path / "other.key") != key


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "ab" * 33, "é"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.key").write_text(text)
    with pytest.raises(UserError, match="is not the key of a run") as caught:
        hashing.read_key(tmp_path / "run.key")
    assert caught.value.code == ExitCode.INTEGRITY


def test_missing_key_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        hashing.read_key(tmp_path / "run.key")
    assert "put it back there" in caught.value.hint


def test_file_of_rows_is_hashed_with_the_key(tmp_path: Path) -> None:
    path = tmp_path / "forget.jsonl"
    path.write_bytes(b"x" * (hashing.CHUNK + 7))
    expected = hmac.new(b"k" * 32, path.read_bytes(), "sha256").hexdigest()
    assert hashing.keyed_files(b"k" * 32, str(path)) == {"forget.jsonl": (expected, hashing.CHUNK + 7)}
    assert hashing.keyed_files(b"q" * 32, str(path))["forget.jsonl"][0] != expected


def test_folder_of_rows_is_hashed_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jsonl").write_text("1")
    (tmp_path / "deep" / "b.csv").write_text("2")
    (tmp_path / ".hidden").write_text("3")
    assert list(hashing.keyed_files(b"k", str(tmp_path))) == ["a.jsonl", "deep/b.csv"]
    assert list(hashing.keyed_files(b"k", f"{tmp_path}@train")) == ["a.jsonl", "deep/b.csv"]
    assert hashing.keyed_files(b"k", "org/dataset:config@train") == {}


def test_texts_of_a_keyed_hash_do_not_run_into_each_other() -> None:
    expected = hmac.new(b"k", json.dumps(["é", "b"], ensure_ascii=False).encode(), "sha256").hexdigest()
    assert hashing.keyed_text(b"k", "é", "b") == expected
    assert hashing.keyed_text(b"k", "ab", "c") != hashing.keyed_text(b"k", "a", "bc")
