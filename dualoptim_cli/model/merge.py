"""Adapters and their full-precision base become one plain model, a tensor at a time, and the result is checked.

No more than one shard of the result is held at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.files import atomic_folder, check_apart, check_free
from dualoptim_cli.model.adapter import Changes, check_adapter, contained_in, digest, read_adapter
from dualoptim_cli.model.agreement import Difference, compare, tolerance_of
from dualoptim_cli.model.locate import CODE, DESCRIPTION, Located, fetch, locate, locate_adapter, whole_model
from dualoptim_cli.model.shards import Shards, shard_size
from dualoptim_cli.model.weights import check_weights, has_weights, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Merged:
    """What was merged, and how well: the base, its adapters in order, those left out, and the files' precision."""

    out: Path
    base: str
    adapters: tuple[Path, ...]
    left_out: tuple[Path, ...]
    dtype: str
    shards: int
    difference: Difference
    notes: tuple[str, ...]


def merge(
    adapters: Sequence[str],
    out: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    tolerance: float | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    finish: Callable[[Path, Merged], None] = lambda *_: None,
) -> Merged:
    """Merge adapters, in order, into their full-precision base, and check the result before it takes its name.

    `dtype` "auto" keeps each tensor's own. Raises UserError for what cannot be merged rightly, and (exit 5, nothing
    left behind) when the merged logits differ by more than `tolerance` times the largest. `finish` may add to the
    folder before that.
    """
    size = shard_size(max_shard_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already.", "Choose another --out, or remove it.")
    located, left_out = locate_chain(adapters, base, trust_remote_code)
    named = [("an adapter", Path(name)) for name in adapters]
    check_apart(out, [("the base", located.folder), *named, *(("an adapter", each) for each in located.adapters)])
    located = _with_weights(located, trust_remote_code)
    check_weights(located.folder)
    notes = tuple(_notes(located))
    _check_room(located.folder, out, dtype)
    with atomic_folder(out) as aside:
        shards = _write(located, aside, dtype, size, trust_remote_code)
        precision = _precision(aside)
        if tolerance is None:
            tolerance = tolerance_of(_precision(located.folder), precision)
        difference = compare(located, aside, tolerance, device, trust_remote_code)
        if not difference.passed:
            hint = "Nothing was kept. --dtype float32 rounds least; --tolerance sets what is allowed."
            raise UserError(f"The merged model is not base + adapter: {difference}.", hint, ExitCode.INTEGRITY)
        merged = Merged(out, located.base, located.adapters, left_out, precision, shards, difference, notes)
        finish(aside, merged)
    return merged


def locate_chain(
    names: Sequence[str], base: str | None, trust_remote_code: bool = False
) -> tuple[Located, tuple[Path, ...]]:
    """Base and adapters in order, and those left out because a later one has taken them up.

    The base is the one given, or the one that the first adapter names.
    """
    located = [_as_adapter(name, base, trust_remote_code) for name in names]
    folders: dict[Path, None] = {}
    taken_up: set[str] = set()
    for part in located:
        folders |= dict.fromkeys(folder.resolve() for folder in part.adapters)
    for folder in folders:
        taken_up.update(contained_in(folder))
    chain = [folder for folder in folders if digest(folder) not in taken_up]
    left_out = tuple(folder for folder in folders if folder not in chain)
    start = located[0]
    if start.settings.get("quantization_config"):
        hint = "Name the full-precision model that it was made of with --base."
        raise UserError(f"{start.base} holds quantized weights.", hint)
    return replace(start, adapters=tuple(chain)), left_out


def _as_adapter(name: str, base: str | None, trust_remote_code: bool) -> Located:
    """An adapter over the base given, or over its own."""
    if base is not None and Path(name).is_dir():
        folder = locate_adapter(name)
        located = locate(base, trust_remote_code=trust_remote_code)
        return replace(located, name=name, adapters=(*located.adapters, folder))
    located = locate(name, trust_remote_code=trust_remote_code)
    if not located.adapters:
        raise UserError(f"{name} is not an adapter: it holds a model.", "There is nothing to merge.")
    return located


def _with_weights(located: Located, trust_remote_code: bool) -> Located:
    if has_weights(located.folder):
        return located
    return replace(located, folder=fetch(located.base, located.revision, whole_model(trust_remote_code)))


def _notes(located: Located) -> Iterator[str]:
    """What a user should know of a chain whose adapters name other bases than the one they are merged into."""
    for folder in located.adapters:
        named = check_adapter(folder).get("base_model_name_or_path")
        there = named
        if named and Path(named).is_dir():
            there = str(Path(named).resolve())
        if there != located.base:
            yield f"{folder} was trained over {named}, and is merged into {located.base}."


def _check_room(base: Path, out: Path, dtype: str) -> None:
    """Foresee a full disk: the result is about as large as the base, twice so where 16 bits become 32."""
    size = sum((base / name).stat().st_size for name in weight_files(base))
    if dtype == "float32":
        size *= 2
    check_free(size, out, "the merged model")


def _write(located: Located, out: Path, dtype: str, size: int, trust_remote_code: bool) -> int:
    """Write the merged model to a folder; return the number of its shards."""
    adapters = [read_adapter(folder) for folder in located.adapters]
    skeleton = _skeleton(located.folder, trust_remote_code)
    changes = Changes(skeleton, adapters)
    names = _names_in_files(located.folder, skeleton, changes)
    shards = Shards(out, size)
    for file in weight_files(located.folder):
        for key, tensor in _tensors(located.folder / file, set(names)):
            kind = _kind(tensor, dtype)
            if names[key] in changes.names:
                tensor = changes.of(names[key], tensor)
            shards.add(key, tensor.to(kind).contiguous())
    count = shards.finish()
    _carry_over(located.folder, out, dtype)
    return count


def _skeleton(folder: Path, trust_remote_code: bool) -> nn.Module:
    """The base without its weights: what modules it has, of which kind, and which weights are shared."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model: nn.Module = build(config, trust_remote_code=trust_remote_code)
    return model


def _names_in_files(folder: Path, skeleton: Any, changes: Changes) -> dict[str, str]:
    """Each tensor of a folder's files → its name in the model: files of some base models leave out a first part.

    Raises UserError when a weight that changes is in no file under its name.
    """
    from safetensors import safe_open

    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    names: dict[str, str] = {}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dict
                longer = f"{skeleton.base_model_prefix}.{key}"
                names[key] = key
                if key not in parameters and longer in parameters:
                    names[key] = longer
    lost = sorted(changes.names - set(names.values()))
    raise_all(
        [
            UserError(f"{folder}: no file holds {name} under that name.", "Save the base again: model.save_pretrained.")
            for name in lost
        ]
    )
    return names


def _tensors(file: Path, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - it is no dict
            if key in wanted:
                yield key, opened.get_tensor(key)


def _kind(tensor: Tensor, dtype: str) -> torch.dtype:
    import torch

    if dtype == "auto" or not tensor.is_floating_point():
        return tensor.dtype
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def _carry_over(base: Path, out: Path, dtype: str) -> None:
    """Copy what describes the base: settings, tokenizer, generation config, and code where it has some."""
    for pattern in [*DESCRIPTION, *CODE]:
        for file in base.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, out / file.name)
    if dtype != "auto":
        settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
        key = "dtype"
        if "torch_dtype" in settings:  # its name before transformers 5
            key = "torch_dtype"
        (out / "config.json").write_text(json.dumps(settings | {key: dtype}, indent=2) + "\n", encoding="utf-8")


def _precision(folder: Path) -> str:
    """The coarsest precision of a folder's weights."""
    from safetensors import safe_open

    kinds = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            kinds |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118 - it is no dict
    for kind, name in (("BF16", "bfloat16"), ("F16", "float16")):
        if kind in kinds:
            return name
    return "float32"
