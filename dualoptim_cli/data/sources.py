"""What a source names: a file, a folder of files, or a dataset. Knows no tokenizer and no column names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dualoptim_cli.data.rows import RowReader, Rows, Table, TextFile, check_unpacked
from dualoptim_cli.errors import UserError, did_you_mean

TEXT = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT, ".parquet", *(f"{suffix}.gz" for suffix in TEXT))
SPREADSHEET = "Save the sheet as CSV."
PLAIN_TEXT = 'Write each text as one line {"text": …} of a .jsonl file.'
WAYS_OUT = {
    ".xlsx": SPREADSHEET,
    ".xls": SPREADSHEET,
    ".ods": SPREADSHEET,
    ".txt": PLAIN_TEXT,
    ".md": PLAIN_TEXT,
    ".docx": PLAIN_TEXT,
    ".pdf": PLAIN_TEXT,
    ".arrow": "Give the whole folder that save_to_disk wrote.",
    ".zip": "Unpack it.",
}
SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` of `datasets` leaves in its folder


class Named(NamedTuple):
    """A source in its parts: `name[:config][@split]`."""

    name: str
    config: str | None
    split: str | None


def open_source(source: str) -> Rows:
    """The rows that `source` names: a file, a folder of files, or a dataset `name[:config][@split]`.

    Of a folder with config or split, only the files that have them as a word in their path count. Raises a
    UserError when there is no such thing; the rows themselves are read later, by `Rows.scan`.
    """
    named = parse_source(source)
    if Path(source).exists():  # such a name has no further parts, whatever signs are in it
        named = Named(source, None, None)
    path = Path(named.name)
    if path.is_file() and named.name == source:
        return Rows([_open_file(path, source)])
    if path.is_dir() and _is_saved(path):
        return Rows([_open_saved(path, named)])
    if path.is_dir():
        return Rows(_open_folder(path, named))
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", named.name) and not path.parent.is_dir():
        return Rows([_open_hub(source, named)])
    raise _not_found(path, source)


def from_list(name: str, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that are already in memory, under the name that errors will use."""
    return Rows([Table(name, len(rows), lambda start, stop: rows[start:stop])])


def parse_source(source: str) -> Named:
    """The parts of a source; the colon behind the letter of a Windows drive begins no configuration."""
    drive = ""
    if re.match(r"[A-Za-z]:[\\/]", source):
        drive = source[:2]
    name, _, split = source.removeprefix(drive).partition("@")
    name, _, config = name.partition(":")
    return Named(drive + name, config or None, split or None)


def place_of(source: str) -> Path:
    """The file or folder that a source names; there is none there when it names a dataset of the hub."""
    if Path(source).exists():
        return Path(source)
    return Path(parse_source(source).name)


def _open_file(path: Path, file: str) -> RowReader:
    if not path.name.lower().endswith(SUFFIXES):
        hint = WAYS_OUT.get(path.suffix.lower(), "")
        raise UserError(
            f"{file} is no file of rows that can be read.", f"{hint} These can: {', '.join(SUFFIXES)}.".strip()
        )
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path, file)
    return TextFile(path, file)


def _open_parquet(path: Path, file: str) -> RowReader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches, size = [], 0
    try:
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=1024):
                batches.append(batch)
                size += batch.nbytes
                check_unpacked(size, file)
            table = pa.Table.from_batches(batches, opened.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({type(error).__name__}).", "Is it complete?") from None
    return Table(file, table.num_rows, lambda start, stop: table.slice(start, stop - start).to_pylist())


def _open_folder(path: Path, named: Named) -> list[RowReader]:
    files = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if file.name.lower().endswith(SUFFIXES) and not is_hidden:
            files.append(inside)
    if not files:
        raise UserError(f"{path} is a folder without files of rows.", f"Readable are {', '.join(SUFFIXES)}.")
    words = {word for word in (named.config, named.split) if word}
    chosen = [file for file in files if words <= {*re.split(r"[/.-]", file.as_posix())}]
    if not chosen:
        listed = ", ".join(file.as_posix() for file in files[:10])
        raise UserError(f"No file in {path} is named after {' and '.join(sorted(words))}.", f"There are {listed}.")
    return [_open_file(path / file, str(path / file)) for file in chosen]


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)


def _open_saved(path: Path, named: Named) -> RowReader:
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        what = f"{path} cannot be read as a saved dataset ({type(error).__name__})."
        raise UserError(what, "Save it again with save_to_disk, or give its files.") from None
    if isinstance(loaded, datasets.DatasetDict):
        return _dataset(loaded, named, str(path))
    return _dataset({named.split: loaded}, named, str(path))


def _open_hub(source: str, named: Named) -> RowReader:
    """`datasets` downloads into its own cache; what it lacks it says in the names of its exceptions."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(named.name, named.config, split=named.split)
    except DatasetNotFoundError:
        raise UserError(
            f"There is no dataset {named.name} here or on the Hugging Face hub, or it needs a login.",
            "Check the name; for a gated dataset, accept its terms on its page and run `hf auth login`.",
        ) from None
    except ValueError as error:  # an unknown config or split: the message lists those that there are
        raise UserError(f"{source}: {' '.join(str(error).split())}", "Write it as name:config@split.") from None
    except OSError:
        raise UserError(
            f"There is no file or folder {named.name}, and the Hugging Face hub cannot be reached.",
            "Check the path, or the network; a dataset that was downloaded elsewhere can be given as a folder.",
        ) from None
    except DatasetsError as error:
        raise UserError(
            f"{source} cannot be made into rows ({type(error).__name__}).", "Give its files as a folder instead."
        ) from None
    if isinstance(loaded, Mapping):
        return _dataset(loaded, named, source)
    return _dataset({named.split: loaded}, named, source)


def _dataset(splits: Mapping[str | None, Any], named: Named, source: str) -> RowReader:
    split = named.split
    if not split and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        names = [str(name) for name in splits]
        missing = "has several splits"
        if split:
            missing = f"has no split {split}"
        hint = did_you_mean(split or "", names)
        raise UserError(f"{source} {missing}.", f"{hint} Write it as {named.name}@{names[0]}.")
    arrow = splits[split].with_format("arrow")
    return Table(source, len(arrow), lambda start, stop: arrow[start:stop].to_pylist())


def _not_found(path: Path, source: str) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"{source} does not exist, nor does the folder {path.parent}.", "Check the path.")
    names = sorted(file.name for file in path.parent.iterdir() if file.name.lower().endswith(SUFFIXES))
    hint = "Check the path."
    if names:
        hint = did_you_mean(path.name, names)
    return UserError(f"{source} does not exist.", hint)
