"""Hashes of what a run read and left: plain for models and results, keyed for rows, which a plain hash would betray.

A short sentence can be guessed from its plain hash by hashing guesses. So rows and files of rows are hashed with a key
(HMAC-SHA256) that lies beside the run folder, for its owner to keep; who lacks it learns nothing from them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dualoptim_cli.data.sources import place_of
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import sha256

THREADS, CHUNK = 8, 1 << 20
LONGEST_KEY = 200  # characters that are read of a key file: 64 digits, with room for blanks that an editor leaves

# What makes a model behave as it does: weights, settings, tokenizer and code; not its description or our mark.
MODEL_FILES = (
    *("*.safetensors", "config.json", "generation_config.json", "*.safetensors.index.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
    "*.py",
)


def hash_files(root: Path, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of files below `root`, read in pieces by several threads at once; sorted by name."""
    listed = sorted(names)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        hashes = pool.map(lambda name: (sha256(root / name), (root / name).stat().st_size), listed)
        return dict(zip(listed, hashes, strict=True))


def files_below(root: Path) -> list[str]:
    """Every file and link below a folder by its path from there, with forward slashes; links are not followed."""
    paths = []
    for above, folders, files in os.walk(root):
        links = [name for name in folders if Path(above, name).is_symlink()]
        paths += [Path(above, name).relative_to(root).as_posix() for name in (*files, *links)]
    return sorted(paths)


def empty_folders_below(root: Path) -> list[str]:
    """Every folder below a folder that holds nothing, by its path from there."""
    folders = [Path(above).relative_to(root) for above, inner, files in os.walk(root) if not inner and not files]
    return sorted(folder.as_posix() for folder in folders if folder != Path())


def model_files(folder: Path) -> list[str]:
    """The files in a model's folder that decide what it does."""
    names: set[str] = set()
    for pattern in MODEL_FILES:
        names.update(path.name for path in folder.glob(pattern) if path.is_file())
    return sorted(names)


def whole(hashes: Mapping[str, str]) -> str:
    """One digest of several files: the SHA-256 of what `sha256sum` prints of them in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def key_file(run: Path) -> Path:
    """Where the key of a run lies: beside its folder, so that handing on the folder does not hand on the key."""
    return run.resolve().with_name(f"{run.resolve().name}.key")


def new_key() -> bytes:
    """A key that nobody can guess."""
    return secrets.token_bytes(32)


def make_key(path: Path, key: bytes | None = None) -> bytes:
    """Write a key, by default a new one, for its owner alone; raises FileExistsError where something lies at `path`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write((key or new_key()).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()  # half a key would be taken for a wrong one
        raise
    return read_key(path)


def read_key(path: Path) -> bytes:
    """Read a key; raises UserError (exit 5) where there is none, or where the file holds something else."""
    try:
        if path.exists() and not path.is_file():  # a pipe or device would be read for ever
            raise UserError(f"{path}: the key cannot be read (it is no regular file).", "", ExitCode.INTEGRITY)
        with path.open(encoding="ascii") as file:
            key = bytes.fromhex(file.read(LONGEST_KEY))
    except OSError as error:
        hint = "It lies beside the run folder when the run is made: put it back there."
        raise UserError(f"{path}: the key cannot be read ({error.strerror}).", hint, ExitCode.INTEGRITY) from None
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UserError(f"{path} is not the key of a run.", "A key is 64 hexadecimal digits.", ExitCode.INTEGRITY)
    return key


def check_private(path: Path) -> None:
    """Refuse a key that others than its owner may read, where the file system keeps such permissions at all."""
    if os.name == "nt" or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return
    with tempfile.NamedTemporaryFile(dir=path.parent) as probe:  # made with 0600: some file systems ignore that
        kept = not stat.S_IMODE(os.fstat(probe.fileno()).st_mode) & 0o077
    if kept:
        hint = f"If nobody else has read it, chmod 600 {path}; otherwise start anew without it."
        raise UserError(f"{path} can be read by others: hashes with that key protect nothing.", hint)


def keyed_files(key: bytes, *sources: str) -> dict[str, tuple[str, int]]:
    """HMAC and bytes of the files that a source of rows names; empty where it names none (a dataset of the hub).

    Files of several sources are called by their paths, since their names may be alike; where one of the sources names
    no file, there are none at all.
    """
    if len(sources) == 1:
        return _files_of(key, sources[0])
    files: dict[str, tuple[str, int]] = {}
    for source in sources:
        own = _files_of(key, source)
        if not own:
            return {}
        files |= _by_path(source, own)
    return files


def _by_path(source: str, files: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    path = place_of(source)
    return {source if path.is_file() else f"{source}/{name}": code for name, code in files.items()}


def _files_of(key: bytes, source: str) -> dict[str, tuple[str, int]]:
    path = place_of(source)
    if path.is_file():
        return {path.name: _keyed_file(key, path)}
    codes = {}
    for name in files_below(path):
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if not is_hidden and (path / name).is_file():  # a pipe or device would be read for ever
            codes[name] = _keyed_file(key, path / name)
    return codes


def keyed_text(key: bytes, *parts: str) -> str:
    """HMAC of some texts, kept apart from each other by writing them as JSON."""
    return hmac.digest(key, json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass"), "sha256").hex()


def keyed_bytes(key: bytes, data: bytes) -> str:
    """HMAC of bytes."""
    return hmac.digest(key, data, "sha256").hex()


def _keyed_file(key: bytes, path: Path) -> tuple[str, int]:
    code, size = hmac.new(key, digestmod="sha256"), 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            code.update(piece)
            size += len(piece)
    return code.hexdigest(), size
