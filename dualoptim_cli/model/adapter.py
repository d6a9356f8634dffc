"""An adapter on disk as what it is: for each weight of its base, how that weight changes.

LoRA (Hu et al. 2021, arXiv 2106.09685): W + s·B·A with s = alpha/rank; rsLoRA (Kalajdzievski 2023, arXiv 2312.03732):
s = alpha/√rank; DoRA (Liu et al. 2024, arXiv 2402.09353): the sum scaled row by row to a trained length. What is
none of these is refused, so that no part of an adapter is ever left out in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import text
from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.files import sha256
from dualoptim_cli.model.weights import check_weights, read_object

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS, CHAIN = "adapter_config.json", "adapter_model.safetensors", "adapter_chain.json"
PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?")
_LENGTH = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("modules_to_save", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}

# Of `init_lora_weights`: the others (PiSSA, OLoRA, LoftQ …) change the base as they begin.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Pair:
    """The two factors for one weight, `a` (rank, in) and `b` (out, rank), and for DoRA the rows' `length` (out,)."""

    a: Tensor
    b: Tensor
    scale: float
    length: Tensor | None = None
    of_embedding: bool = False

    def added_to(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in), in float32."""
        moved: Tensor = weight.float() + (self.b.float() @ self.a.float()).to(weight.device) * self.scale
        if self.length is None:
            return moved
        factor: Tensor = self.length.float().to(weight.device) / moved.norm(dim=1)
        return factor[:, None] * moved


@dataclass(frozen=True)
class Adapter:
    """An adapter read from its folder: pairs by module, and whole tensors that stand in place of the base's."""

    folder: Path
    settings: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    whole: Mapping[str, Tensor]

    @property
    def is_plain(self) -> bool:
        """Whether all that it does is to add products to weights, so that several can stand side by side."""
        plain = (pair.length is None and not pair.of_embedding for pair in self.pairs.values())
        return not self.whole and all(plain)


def check_adapter(folder: Path) -> dict[str, Any]:
    """The settings of an adapter that we can open rightly; raises UserError with every reason why not."""
    settings = read_object(folder / CONFIG)
    if settings is None:
        raise UserError(f"{folder / CONFIG} is not a JSON object.", "Fetch or save the adapter again.")
    faults = [UserError(f"{folder}: {reason}", "Merge it with the library that made it.") for reason in _odd(settings)]
    if not (folder / WEIGHTS).is_file():
        what = f"holds no {WEIGHTS}"
        if any(folder.glob("*.bin")):
            what = "has only pickled weights; weights load from safetensors only"
        faults.append(UserError(f"{folder} {what}.", "Save it again with peft's save_pretrained."))
    else:
        faults += _faults_of_weights(folder)
    raise_all(faults)
    return settings


def _faults_of_weights(folder: Path) -> list[UserError]:
    try:
        check_weights(folder, WEIGHTS)
    except UserError as fault:
        return [fault]
    return []


def _odd(settings: Mapping[str, Any]) -> Iterator[str]:
    """What an adapter's settings ask for that is not understood here."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"it is a {kind} adapter, not LoRA."
        return
    for key, value in sorted(settings.items()):
        if key == "init_lora_weights":
            if value not in _PLAIN_BEGINNINGS:
                yield f"init_lora_weights {value} changes the base as well, which the adapter does not hold."
        elif key == "bias":
            if value != "none":
                yield f'it trains biases of the base (bias "{value}").'
        elif key not in _UNDERSTOOD and value not in (None, False, "", {}, []):
            yield f"it uses {key}, which is not supported."


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's tensors; raises UserError for what is not understood, unpaired or not of one size."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = check_adapter(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}.", "Fetch or save the adapter again.") from error
    return make_adapter(folder, settings, tensors)


def make_adapter(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """An adapter from peft's settings and tensors; `folder` is its name in errors."""
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    embeddings = set()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if factor := _PAIR.fullmatch(name):
            factors.setdefault(factor["module"], {})[factor["part"][-1]] = tensor
            if "embedding" in factor["part"]:
                embeddings.add(factor["module"])
        elif length := _LENGTH.fullmatch(name):
            factors.setdefault(length["module"], {})["length"] = tensor
        elif ".lora_" in name:
            raise UserError(f"{folder}: {name} is not understood.", "Merge it with the library that made it.")
        else:  # peft saves the embeddings under an adapter along with it
            whole[name.replace(".base_layer.", ".")] = tensor
    raise_all([_unpaired(folder, module, parts) for module, parts in factors.items() if not _fits_itself(parts)])
    pairs = {
        module: Pair(
            parts["A"],
            parts["B"],
            scale_of(settings, module, parts["A"].shape[0]),
            parts.get("length"),
            module in embeddings,
        )
        for module, parts in factors.items()
    }
    return Adapter(folder, settings, pairs, whole)


def digest(folder: Path) -> str:
    """The SHA-256 of an adapter's weights, in hex: what tells two adapters apart."""
    return sha256(folder / WEIGHTS)


def contained_in(folder: Path) -> list[str]:
    """The digests of earlier adapters that an adapter of ours has taken up, oldest first."""
    if not (folder / CHAIN).is_file():
        return []
    try:
        content = json.loads((folder / CHAIN).read_text(encoding="utf-8"))
        return [str(one) for one in content["contains"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        hint = "Without it, the adapters that this one has taken up would be merged twice: restore it."
        raise UserError(f"{folder / CHAIN} is not what dualopt wrote.", hint, ExitCode.INTEGRITY) from None


def _fits_itself(parts: Mapping[str, Tensor]) -> bool:
    two = parts.get("A"), parts.get("B")
    return all(part is not None and part.ndim == 2 for part in two) and parts["A"].shape[0] == parts["B"].shape[1]


def _unpaired(folder: Path, module: str, parts: Mapping[str, Tensor]) -> UserError:
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    return UserError(f"{folder}: the factors of {module} do not make a pair: {shapes}.", "Save the adapter again.")


def scale_of(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What an adapter's product for a module is multiplied by; a module may have an alpha of its own."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    own = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(own, settings["lora_alpha"]))
    if settings.get("use_rslora"):
        return float(alpha / rank**0.5)
    return alpha / rank


class Changes:
    """What a chain of adapters does to the weights of a model, checked against it; the model may be a meta one.

    Raises UserError with every weight that an adapter names and the model lacks, has in another shape, or shares
    with another part that the adapter did not mean to change.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        self._adapters = adapters
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._turned = {name for name, module in model.named_modules() if _is_stored_turned(module)}
        self._shared = _shared(self._parameters)
        raise_all(list(chain.from_iterable(map(self._faults, adapters))))
        self.names = set(chain.from_iterable(map(self._touched, adapters)))

    def of(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base → the same after all adapters, in float32 where it changes."""
        module = name.removesuffix(".weight")
        for adapter in self._adapters:
            if name in adapter.whole:
                weight = adapter.whole[name].to(weight.device)
            if module not in adapter.pairs or name == module:
                continue
            if module in self._turned:
                weight = adapter.pairs[module].added_to(weight.T).T
            else:
                weight = adapter.pairs[module].added_to(weight)
        return weight

    def _touched(self, adapter: Adapter) -> list[str]:
        return [*(f"{module}.weight" for module in adapter.pairs), *adapter.whole]

    def _faults(self, adapter: Adapter) -> Iterator[UserError]:
        lost, misshapen, shared = [], [], []
        for name in self._touched(adapter):
            if name not in self._parameters:
                lost.append(name)
            elif self._shape(adapter, name) != tuple(self._parameters[name].shape):
                theirs = tuple(self._parameters[name].shape)
                misshapen.append(f"{name} (of {self._shape(adapter, name)}, the base's is {theirs})")
            elif name in self._shared:
                shared.append(f"{name} (shared with {self._shared[name]})")
        hint = "Was it made for this base? Name the right one with --base."
        if lost:
            yield UserError(f"{adapter.folder} changes weights that the base lacks: {text.some(lost)}.", hint)
        if misshapen:
            yield UserError(f"{adapter.folder} changes weights of another shape: {text.some(misshapen)}.", hint)
        if shared:
            what = f"{adapter.folder} changes weights that another part of the base shares: {text.some(shared)}"
            yield UserError(f"{what}. Merging would change both.", "Such an adapter can only be used beside its base.")

    def _shape(self, adapter: Adapter, name: str) -> tuple[int, ...]:
        if name in adapter.whole:
            return tuple(adapter.whole[name].shape)
        module = name.removesuffix(".weight")
        pair = adapter.pairs[module]
        if module in self._turned:
            return (pair.a.shape[1], pair.b.shape[0])
        return (pair.b.shape[0], pair.a.shape[1])


def _is_stored_turned(module: nn.Module) -> bool:
    """Whether a module keeps its weight as (in, out): GPT-2's Conv1D, and embeddings as LoRA sees them."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (Conv1D, nn.Embedding))


def _shared(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of parameters that are one in memory → another name of the same."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in parameters.items():
        other = first.setdefault(id(parameter), name)
        if other != name:
            shared |= {name: other, other: name}
    return shared
