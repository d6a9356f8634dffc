"""A name becomes folders: a model's, or a base's and those of the adapters that go onto it, checked before loading.

A name is a folder or a hub name, and what lies there is a model, an adapter, or a run that left one of both. A hub
name is first made a local folder (only the files that are needed, never a pickle), so that all checks know one case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.model.adapter import CONFIG, WEIGHTS, check_adapter
from dualoptim_cli.model.weights import check_weights, has_weights, read_object

DESCRIPTION = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]  # small: settings and tokenizer
TENSORS = ["*.safetensors", "*.safetensors.index.json"]
CODE = ["*.py"]
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
MOST_PARTS = 200_000
_PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt")


@dataclass(frozen=True)
class Located:
    """A model on disk, checked as far as that goes without loading it: `folder` and, onto that, `adapters` in order.

    `name` is what will be loaded, which can differ from what was asked for: `note` then says why. `base` is how
    the folder is found again, a hub name (with its `revision`) or an absolute path.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    note: str = ""
    adapters: tuple[Path, ...] = ()
    base: str = ""
    revision: str | None = None

    @property
    def width(self) -> int:
        """The hidden size, whichever of its names this architecture uses; 0 when it has none of them."""
        for key in ("hidden_size", "n_embd", "d_model", "dim"):
            if isinstance(self.settings.get(key), int):
                return int(self.settings[key])
        inner = self.settings.get("text_config")
        if isinstance(inner, dict) and isinstance(inner.get("hidden_size"), int):
            return int(inner["hidden_size"])
        return 0

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders whose files make up the model: the base's, then those of its adapters."""
        return (self.folder, *self.adapters)


def locate(name: str, *, revision: str | None = None, trust_remote_code: bool = False, weights: bool = True) -> Located:
    """Find a model, adapter or run by folder or hub name and check that it can be loaded; no weights are read.

    Without `weights`, a folder need not hold them, only what describes the model. Raises UserError with every fault
    of the folder at once, or with the hub's reason and the way out.
    """
    return _locate(name, revision, trust_remote_code, weights, above=())


def _locate(
    name: str, revision: str | None, trust_remote_code: bool, weights: bool, above: tuple[Path, ...]
) -> Located:
    """Locate a name; `above` are the adapters that named it as their base."""
    note = ""
    local = Path(name).is_dir()
    if local:
        folder = _left_by_run(Path(name))
    elif name.endswith(".gguf"):
        raise _is_gguf(name)
    elif _looks_like_path(name):
        raise UserError(f"There is no model folder {name}.", "Check the path, or give a hub name like org/model.")
    else:
        name, folder, note = _find_on_hub(name, revision, trust_remote_code)
    if is_adapter(folder):
        return _locate_adapter(name, folder, trust_remote_code, weights, above)
    # The weights of a hub's model are fetched when they are loaded.
    settings, faults = check_folder(folder, name, trust_remote_code, weights=weights and local)
    raise_all(faults)
    if local:
        return Located(name, folder, settings, base=str(folder.resolve()))
    return Located(name, folder, settings, note, base=name, revision=revision)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def locate_adapter(name: str) -> Path:
    """The folder of an adapter, given itself or the run that left it."""
    folder = _left_by_run(Path(name))
    if not is_adapter(folder):
        what = "holds none"
        if (folder / "config.json").is_file():
            what = "holds a model"
        raise UserError(f"{name} is not an adapter: it {what}.", f"An adapter has {CONFIG} and {WEIGHTS}.")
    check_adapter(folder)
    return folder


def _left_by_run(folder: Path) -> Path:
    """What a run left in its folder; any other folder is what it is."""
    if (folder / "config.json").is_file() or (folder / CONFIG).is_file():
        return folder
    for left in (folder / "model", folder / "adapter"):
        if left.is_dir():
            return left
    if (folder / "config.yaml").is_file():
        hint = f"Finish it: dualopt unlearn --out {folder} --resume"
        raise UserError(f"The run in {folder} has left no model: it is not finished.", hint)
    return folder


def _locate_adapter(
    name: str, folder: Path, trust_remote_code: bool, weights: bool, above: tuple[Path, ...]
) -> Located:
    """An adapter with the base that it names, which can itself be a run or an adapter."""
    settings = check_adapter(folder)
    base, here = settings.get("base_model_name_or_path"), folder.resolve()
    hint = f"Say which with --base: dualopt merge-lora --adapter {name} --base MODEL --out DIR makes a model of both."
    if not base:
        raise UserError(f"{name} is an adapter that names no base model.", hint)
    if here in above:
        raise UserError(f"{name} is an adapter that names itself as its base.", hint)
    beside = folder / base
    if not Path(base).is_dir() and not Path(base).is_absolute() and beside.is_dir():
        base = str(beside)
    elif not Path(base).is_dir() and _looks_like_path(base):
        raise UserError(f"{name} is an adapter for {base}, which is not there.", hint)
    located = _locate(base, settings.get("revision"), trust_remote_code, weights, (*above, here))
    return replace(located, name=name, adapters=(*located.adapters, folder))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or Path(name).exists()


def check_folder(
    folder: Path, name: str, trust_remote_code: bool, *, weights: bool = True
) -> tuple[dict[str, Any], list[UserError]]:
    """The folder's settings, and a fault for each thing that would keep it from loading; `weights` may be left out."""
    if not (folder / "config.json").is_file():
        return {}, [_no_config(folder, name)]
    settings = read_object(folder / "config.json")
    if settings is None:
        return {}, [UserError(f"{name}: config.json is not a JSON object.", "Fetch or save the model again.")]
    faults = []
    kinds = settings.get("architectures") or []
    if not any(str(kind).endswith(_CAUSAL) for kind in kinds) and not trust_remote_code:
        is_a = ", ".join(map(str, kinds)) or "of no stated architecture"
        faults.append(UserError(f"{name} is not a causal language model: it is {is_a}.", "Unlearning needs one."))
    if not any((folder / file).is_file() for file in _TOKENIZER):
        faults.append(UserError(f"{name} has no tokenizer.", "Save it there: tokenizer.save_pretrained(folder)."))
    faults += _too_many_parts(name, settings)
    if weights:
        faults += _faults_of_weights(folder, name, settings)
    if (folder / CONFIG).is_file():
        what = f"{name} holds a model and an adapter, which transformers would put on the model unasked"
        faults.append(UserError(f"{what}.", "Give each a folder of its own."))
    return settings, faults


def _too_many_parts(name: str, settings: dict[str, Any]) -> list[UserError]:
    """A fault where the settings ask for so many layers and experts that to lay them out alone would take hours.

    They are laid out before the weights are looked at, without memory for their numbers, and yet each takes some. The
    largest models that are published have about 50 000.
    """
    layers, experts = (_largest(settings, names) for names in (LAYERS, EXPERTS))
    if layers * experts <= MOST_PARTS:
        return []
    fact = f"{name}: config.json asks for {layers} layers"
    if experts > 1:
        fact += f" of {experts} experts each"
    return [UserError(f"{fact}; no model has so many.", "Fetch or save the model again.")]


def _largest(settings: dict[str, Any], names: Sequence[str]) -> int:
    """The largest number under these names, in a model's settings or in those of its language part; 1 without any."""
    largest = 1
    for part in (settings, settings.get("text_config")):
        if isinstance(part, dict):
            numbers = [part[name] for name in names if isinstance(part.get(name), int)]
            largest = max([largest, *numbers])
    return largest


def _faults_of_weights(folder: Path, name: str, settings: dict[str, Any]) -> list[UserError]:
    try:
        if not has_weights(folder, settings):
            return [no_weights(folder, name)]
        check_weights(folder)
    except UserError as fault:
        return [fault]
    return []


def _no_config(folder: Path, name: str) -> UserError:
    if any(folder.glob("*.gguf")):
        return _is_gguf(name)
    if _is_original_format(folder):
        hint = "Take the repository converted for transformers, often the same name with -hf."
        return UserError(f"{name} holds weights in the original format, without config.json.", hint)
    return UserError(f"{name} is not a model folder: it has no config.json.", "Save one with save_pretrained.")


def _is_gguf(name: str) -> UserError:
    hint = "Take the model that it was converted from: its hub repository has config.json and *.safetensors."
    return UserError(f"{name} is in GGUF, a format to run models in and not to train them.", hint)


def no_weights(folder: Path, name: str) -> UserError:
    """What to say of a model folder without safetensors."""
    if any(any(folder.glob(pattern)) for pattern in _PICKLED):
        hint = "Unpickling runs code. Where you trust it, convert it once: model.save_pretrained(folder)."
        return UserError(f"{name} has only pickled weights; weights load from safetensors only.", hint)
    return UserError(f"{name} holds no weights (*.safetensors).", "Fetch or save the model again.")


def _is_original_format(folder: Path) -> bool:
    """Meta's own layout: params.json beside consolidated.*.pth, which transformers does not read."""
    return (folder / "params.json").is_file() and not (folder / "config.json").is_file()


ORIGINAL = re.compile(r"meta-llama/Llama-2-\d+b(-chat)?$")
"""The repositories that hold Meta's own format; each has one beside it, with -hf, that transformers reads."""


def whole_model(trust_remote_code: bool) -> list[str]:
    """The patterns of all files that a model is loaded from."""
    return [*_described(trust_remote_code), *TENSORS]


def _described(trust_remote_code: bool) -> list[str]:
    """The patterns of the files that say what a model is."""
    if trust_remote_code:
        return [*DESCRIPTION, *CODE]
    return [*DESCRIPTION]


def _find_on_hub(name: str, revision: str | None, trust_remote_code: bool) -> tuple[str, Path, str]:
    """A hub name → (the name that will be loaded, its folder, a note when the two names differ)."""
    patterns = _described(trust_remote_code)
    converted = f"{name}-hf"
    try:
        folder = fetch(name, revision, patterns)
    except UserError as error:
        if name.endswith("-hf") or error.code != ExitCode.USAGE:
            raise
        try:
            folder = fetch(converted, revision, patterns, offline=True)
        except UserError:
            if ORIGINAL.match(name):
                hint = (
                    f"{name} is in Meta's own format. Fetch its conversion once while online: hf download {converted}"
                )
                raise UserError(error.message, hint) from None
            raise error from None
        return converted, folder, f"{name} is not in the local cache; {converted} is, and is taken."
    if is_adapter(folder):
        return name, fetch(name, revision, [*patterns, WEIGHTS]), ""
    if not _is_original_format(folder):
        return name, folder, ""
    note = f"{name} holds original-format weights; its conversion {converted} is taken."
    return converted, fetch(converted, revision, patterns), note


def fetch(name: str, revision: str | None, patterns: Sequence[str], offline: bool = False) -> Path:
    """The local folder of a hub repository's files, downloaded or from the cache."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=offline))
    except errors.GatedRepoError as error:
        hint = f"Ask for access at https://huggingface.co/{name}, then `hf auth login`."
        raise UserError(f"{name} is gated: its owner has not granted this account access.", hint) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f'{name} has no revision "{revision}".', "Leave --revision out for the newest.") from error
    except errors.RepositoryNotFoundError as error:
        hint = "Check the spelling. A private one needs `hf auth login`; a local one needs its folder's path."
        raise UserError(f"There is no model {name}, neither as a folder nor on the hub.", hint) from error
    except errors.HFValidationError as error:
        raise UserError(f'"{name}" is neither a folder nor a hub name.', "Hub names look like org/model.") from error
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError) as error:
        hint = f"Give a local folder, or fetch it once while online: hf download {name}"
        raise UserError(
            f"{name} is not a local folder, not complete in the local cache, and the hub cannot be reached.",
            hint,
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"The hub refused {name}: {str(error).splitlines()[0]}", "Try again later.") from error
