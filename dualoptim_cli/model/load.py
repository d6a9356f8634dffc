"""A name becomes a model and its tokenizer: found, checked and loaded without pickles or remote code.

A hub name is first made a local folder (only the files that are needed, never a pickle), so that all checks and
the loading itself know one case: a folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.errors import ExitCode, UserError, raise_all

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_DESCRIPTION = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]  # small: settings and tokenizer
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_CODE = ["*.py"]
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt")


@dataclass(frozen=True)
class Located:
    """A model's folder, checked as far as that goes without loading it.

    `name` is what will be loaded, which can differ from what was asked for: `note` then says why.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    note: str = ""

    @property
    def width(self) -> int:
        """The hidden size, whichever of its names this architecture uses; 0 when it has none of them."""
        for key in ("hidden_size", "n_embd", "d_model", "dim"):
            if isinstance(self.settings.get(key), int):
                return int(self.settings[key])
        inner = self.settings.get("text_config")
        return int(inner.get("hidden_size", 0)) if isinstance(inner, dict) else 0


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    dtype: torch.dtype


def locate(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Located:
    """Find a model by folder or hub name and check that it can be loaded; nothing heavy is imported or read.

    Raises UserError with every fault of the folder at once, or with the hub's reason and the way out.
    """
    if Path(name).is_dir():
        folder, found, note = Path(name), name, ""
    elif _looks_like_path(name):
        raise UserError(f"There is no model folder {name}.", "Check the path, or give a hub name like org/model.")
    else:
        found, folder, note = _find_on_hub(name, revision, _CODE if trust_remote_code else [])
    settings, faults = _check_folder(folder, found, trust_remote_code)
    if found != name or not Path(name).is_dir():
        faults = [fault for fault in faults if "weights" not in fault.message]
    raise_all(faults)
    return Located(found, folder, settings, note)


def load(
    located: Located,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load model and tokenizer from a located folder, fetching a hub model's weights first.

    `dtype` "auto" is bfloat16 on CUDA and float32 elsewhere; `device` "auto" is CUDA where there is one.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # progress is told by events
    folder = located.folder
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(located.name, revision, [*_DESCRIPTION, *_WEIGHTS, *(_CODE if trust_remote_code else [])])
        raise_all(_check_folder(folder, located.name, trust_remote_code)[1])
    where = pick_device(device)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype) or (
        torch.bfloat16 if where.type == "cuda" else torch.float32
    )
    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **common)
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=kind, use_safetensors=True, output_loading_info=True, **common
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = "A model with code of its own needs --trust-remote-code." if "remote_code" in str(error) else ""
        raise UserError(f"{located.name} cannot be loaded: {first}", hint) from error
    model, report = found
    _check_complete(report, located.name)
    _check_vocabulary(model, tokenizer, located.name)
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.to(where)
    return Loaded(model, tokenizer, where, kind)


def pick_device(name: str) -> torch.device:
    """The device asked for; "auto" is CUDA, else Apple's GPU, else the CPU."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'model.device: "{name}" is not a device.', "Use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        have = torch.cuda.device_count()
        raise UserError(f"model.device: {name} is not here ({have} CUDA devices).", "Use --device auto or cpu.")
    return device


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or Path(name).exists()


def _check_folder(folder: Path, name: str, trust_remote_code: bool) -> tuple[dict[str, Any], list[UserError]]:
    """The folder's settings, and a fault for each thing that would keep it from loading."""
    if not (folder / "config.json").is_file():
        return {}, [_no_config(folder, name)]
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        return {}, [UserError(f"{name}: config.json is not a JSON object.", "Fetch or save the model again.")]
    faults = []
    kinds = settings.get("architectures") or []
    if not any(str(kind).endswith(_CAUSAL) for kind in kinds) and not trust_remote_code:
        is_a = ", ".join(map(str, kinds)) or "of no stated architecture"
        faults.append(UserError(f"{name} is not a causal language model: it is {is_a}.", "Unlearning needs one."))
    if not any((folder / file).is_file() for file in _TOKENIZER):
        faults.append(UserError(f"{name} has no tokenizer.", "Save it there: tokenizer.save_pretrained(folder)."))
    if not any(folder.glob("*.safetensors")):
        faults.append(_no_weights(folder, name))
    return settings, faults


def _no_config(folder: Path, name: str) -> UserError:
    if (folder / "adapter_config.json").is_file():
        return UserError(f"{name} is a LoRA adapter, not a model: it has no config.json.", "Give the base model.")
    if _is_original_format(folder):
        hint = "Take the repository converted for transformers, often the same name with -hf."
        return UserError(f"{name} holds weights in the original format, without config.json.", hint)
    return UserError(f"{name} is not a model folder: it has no config.json.", "Save one with save_pretrained.")


def _no_weights(folder: Path, name: str) -> UserError:
    if any(path for pattern in _PICKLED for path in folder.glob(pattern)):
        hint = "Unpickling runs code. Where you trust it, convert it once: model.save_pretrained(folder)."
        return UserError(f"{name} has only pickled weights; weights load from safetensors only.", hint)
    return UserError(f"{name} holds no weights (*.safetensors).", "Fetch or save the model again.")


def _is_original_format(folder: Path) -> bool:
    """Meta's own layout: params.json beside consolidated.*.pth, which transformers does not read."""
    return (folder / "params.json").is_file() and not (folder / "config.json").is_file()


def _find_on_hub(name: str, revision: str | None, code: Sequence[str]) -> tuple[str, Path, str]:
    """A hub name → (the name that will be loaded, its folder, a note when the two names differ)."""
    patterns = [*_DESCRIPTION, *code]
    converted = f"{name}-hf"
    try:
        folder = _fetch(name, revision, patterns)
    except UserError as error:
        if name.endswith("-hf") or error.code != ExitCode.USAGE:
            raise
        try:
            folder = _fetch(converted, revision, patterns, offline=True)
        except UserError:
            raise error from None
        return converted, folder, f"{name} is not in the local cache; {converted} is, and is taken."
    if not _is_original_format(folder):
        return name, folder, ""
    note = f"{name} holds original-format weights; its conversion {converted} is taken."
    return converted, _fetch(converted, revision, patterns), note


def _fetch(name: str, revision: str | None, patterns: Sequence[str], offline: bool = False) -> Path:
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


def _check_complete(report: dict[str, Any], name: str) -> None:
    """Refuse a model whose weights are not all in its files: transformers would make up what is missing."""
    missing = sorted(report["missing_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"{name} lacks weights that its config.json names: {some}.", "Fetch or save the model again.")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        hint = "The folder holds the tokenizer of another model, or tokens were added without resizing."
        raise UserError(f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}.", hint)
