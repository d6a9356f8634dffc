"""A located model becomes a model and its tokenizer in memory: without pickles or remote code, quantized if asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import text
from dualoptim_cli.errors import ExitCode, UserError, out_of_memory, raise_all
from dualoptim_cli.model import apply
from dualoptim_cli.model.apply import add_to_weights, put_beside
from dualoptim_cli.model.locate import Located, check_folder, fetch, locate, whole_model
from dualoptim_cli.model.weights import check_weights, has_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

OLDEST_BITSANDBYTES = (0, 49)  # what this was tested with; earlier ones lack kernels for the CPU

__all__ = ["Loaded", "Located", "load", "locate", "pick_device"]


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its tokenizer.

    `base` (a hub name, with its `revision`, or an absolute path) and `adapters` say what it is made of.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    dtype: torch.dtype
    base: str = ""
    revision: str | None = None
    adapters: tuple[Path, ...] = ()


def load(
    located: Located,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    load_in: str | None = None,
    keep_adapters: bool = False,
    gradient_checkpointing: bool = False,
    freeze_embeddings: bool = False,
    trust_remote_code: bool = False,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Loaded:
    """Load model and tokenizer from a located folder, fetching a hub model's weights first.

    `dtype` "auto" is bfloat16 on CUDA and float32 elsewhere; `device` "auto" is CUDA where there is one. `load_in`
    "4bit" or "8bit" quantizes the base on the way. Adapters are added to the weights, in float32 and rounded once;
    with `keep_adapters` or a quantized base they stay beside them, frozen. A `tokenizer` that is loaded already is
    taken as it is.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # progress is told by events
    folder = located.folder
    if not has_weights(folder):
        folder = fetch(located.base, located.revision or revision, whole_model(trust_remote_code))
        raise_all(check_folder(folder, located.base, trust_remote_code)[1])
    where = pick_device(device)
    if dtype == "bfloat16" or (dtype == "auto" and where.type == "cuda"):
        kind = torch.bfloat16
    else:
        kind = torch.float32
    tokenizer = tokenizer or load_tokenizer(replace(located, folder=folder), trust_remote_code=trust_remote_code)
    model = _read(folder, located.name, kind, where, load_in, trust_remote_code)
    _check_vocabulary(model, tokenizer, located.name)
    if located.adapters and (keep_adapters or load_in is not None):
        model = put_beside(model, located.adapters)
    elif located.adapters:
        add_to_weights(model, located.adapters)
    if freeze_embeddings:
        apply.freeze_embeddings(model)
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if not getattr(model, "is_quantized", False):
        model.to(where)
    return Loaded(model, tokenizer, where, kind, located.base, located.revision, located.adapters)


def load_tokenizer(located: Located, *, trust_remote_code: bool) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a located model."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            located.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load(f"The tokenizer of {located.name}", error) from error
    checked: PreTrainedTokenizerFast = tokenizer
    return checked


def _read(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, load_in: str | None, trust_remote_code: bool
) -> Any:
    """The model of a folder, whole."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_weights(folder)
    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if load_in:
        how |= {"quantization_config": quantization(load_in, dtype, device), "device_map": {"": device}}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **how, **common)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if out_of_memory(error):
            kind = str(dtype).removeprefix("torch.")
            short = f"{name} does not fit into the memory of {device} in {kind}."
            hint = "Try --dtype bfloat16, or --load-in-4bit with --lora."
            raise UserError(short, hint, ExitCode.RESOURCES) from error
        raise _cannot_load(name, error) from error
    model, report = loaded
    if load_in == "4bit":
        _keep_differentiable(model)
    _check_complete(report, name)
    return model


def _cannot_load(what: str, error: Exception) -> UserError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    hint = ""
    if "remote_code" in str(error):
        hint = "A model with code of its own needs --trust-remote-code."
    return UserError(f"{what} cannot be loaded: {first}", hint)


def quantization(load_in: str, dtype: torch.dtype, device: torch.device) -> Any:
    """What transformers is asked for: nf4 with doubly quantized scales, or int8; the head stays as it is."""
    from transformers import BitsAndBytesConfig

    raise_all(cannot_quantize(load_in, device.type))
    make: Any = BitsAndBytesConfig
    if load_in == "8bit":
        return make(load_in_8bit=True)
    return make(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew at a forward in eval mode, for its kernel for inference.

    It does so on processors with AVX512-BF16, for good, and no gradient passes that kernel: training after a
    measurement would go on without those of all layers below, and only a warning of torch would tell.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def cannot_quantize(load_in: str, device: str) -> list[UserError]:
    """Why a base cannot be quantized here, if so."""
    from importlib.metadata import PackageNotFoundError, version

    flag = f"--load-in-{load_in}"
    try:
        have = version("bitsandbytes")
    except PackageNotFoundError:
        hint = "pip install 'dualopt[bnb]', or leave the flag out."
        return [UserError(f"{flag} needs bitsandbytes, which is not installed.", hint)]
    if tuple(int(part) for part in have.split(".")[:2]) < OLDEST_BITSANDBYTES:
        hint = f"pip install 'bitsandbytes>={'.'.join(map(str, OLDEST_BITSANDBYTES))}'"
        return [UserError(f"{flag}: bitsandbytes {have} cannot train over quantized weights on every device.", hint)]
    if device.partition(":")[0] not in {"auto", "cpu", "cuda"}:
        return [UserError(f"{flag}: bitsandbytes has no kernels for {device}.", "Use --device cpu or cuda.")]
    return []


def pick_device(name: str) -> torch.device:
    """The device asked for; "auto" is CUDA, else Apple's GPU, else the CPU."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'model.device: "{name}" is not a device.', "Use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        have = torch.cuda.device_count()
        raise UserError(f"model.device: {name} is not here ({have} CUDA devices).", "Use --device auto or cpu.")
    return device


def _check_complete(report: dict[str, Any], name: str) -> None:
    """Refuse a model whose weights are not all in its files: transformers would make up what is missing."""
    missing = sorted(report["missing_keys"])
    if missing:
        fact = f"{name} lacks weights that its config.json names: {text.some(missing)}."
        raise UserError(fact, "Fetch or save the model again.")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        hint = "The folder holds the tokenizer of another model, or tokens were added without resizing."
        raise UserError(f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}.", hint)
