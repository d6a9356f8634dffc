"""What a training step holds in memory, by part, and when that is most.

Weights, gradients and optimizer state are counted. Activations and logits are found by taking the step on paper:
the model and the objectives run as they will, on tensors that have sizes and lifetimes but no memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dualoptim_cli.config import RunConfig
from dualoptim_cli.objectives import Objective, find_objective
from dualoptim_cli.objectives.forward import ANSWERS
from dualoptim_cli.objectives.heads import SplitHead, WholeHead, causal_lm
from dualoptim_cli.objectives.likelihood import nll, widen
from dualoptim_cli.objectives.passes import in_pieces
from dualoptim_cli.plan.blueprint import Blueprint
from dualoptim_cli.plan.choices import taking_turns
from dualoptim_cli.plan.ledger import Ledger

PARTS = (
    "weights",
    "quantization constants",
    "reference copy",
    "optimizer state",
    "gradients",
    "activations",
    "logits",
    "unpacked weights",
    "workspace of the step",
)
COPIES = 16
"""Of a piece of a tensor in float32: what the rule of an Adam form works with, at the most."""
PIECE = {"cpu": 2**16}
OTHER_PIECE = 2**20
"""Numbers of a piece (see optim.dual), on a CPU and elsewhere."""
MUON_COPIES = 5
"""Of a whole matrix in float32: its direction, and what Newton–Schulz holds at once."""
UNKNOWN = "Activations and logits are not counted: what this model computes depends on its numbers."
FEW = 2
"""Layers that are looked at once alone and once with as many more; an even number, since kinds of layers alternate."""


@dataclass(frozen=True)
class Rows:
    """The largest micro-batch: so many rows of at most so many tokens, of which at most `counted` have a loss."""

    rows: int
    length: int
    counted: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step by part, on the device that trains.

    `resting` is there from the first step to the last: weights, quantization constants, optimizer state, the
    reference copy. `highest` has what each other part holds at its own worst moment, `at_peak` what it holds when
    the whole holds most, which is `moment`. `elsewhere` is the reference copy where it is on another device,
    `unknown` what the numbers lack, if anything.
    """

    resting: dict[str, int]
    highest: dict[str, int]
    at_peak: dict[str, int]
    moment: str
    state: dict[str, int]
    elsewhere: int = 0
    unknown: str = ""

    @property
    def certain(self) -> int:
        """What no smaller micro-batch can spare: all that rests, and the gradients."""
        return sum(self.resting.values()) + self.highest["gradients"]

    @property
    def peak(self) -> int:
        """What the whole holds at its worst moment."""
        return sum(self.resting.values()) + sum(self.at_peak.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: of every part, bytes at its own worst moment and at that of the whole."""
        highest, at_peak = self.resting | self.highest, self.resting | self.at_peak
        return {
            "parts": {
                name: {"highest": highest[name], "at_peak": at_peak.get(name, 0)} for name in PARTS if highest.get(name)
            },
            "optimizer_state": self.state,
            "peak": self.peak,
            "moment": self.moment,
            "reference_copy_elsewhere": self.elsewhere,
            "unknown": self.unknown,
        }


def remember(config: RunConfig, blueprint: Blueprint, rows: Rows, *, accumulates: bool, device: str) -> Memory:
    """What a run's steps need on `device` when its micro-batches are as large as `rows`.

    `accumulates` tells that a step has several micro-batches: then all gradients are there while activations are.
    """
    try:
        booked = [
            _booked(config, blueprint, objective, rows, accumulates=accumulates) for objective in _objectives(config)
        ]
    except (RuntimeError, NotImplementedError):  # as fake tensors say that a number is asked for, which they lack
        booked, unknown = [(Counter(), Counter({"gradients": blueprint.trained}))], UNKNOWN
    else:
        unknown = ""
    backward = max(booked, key=lambda each: each[1].total())
    parts = {part for each in booked for part in each[0]}
    highest = {part: max(each[0][part] for each in booked) for part in parts}
    highest["gradients"] = blueprint.trained
    rule = _workspace(config, blueprint, device)
    step = Counter({"gradients": blueprint.trained, "workspace of the step": rule})
    highest["workspace of the step"] = rule
    if config.model.load_in:  # one matrix at a time is unpacked to be multiplied with
        unpacked = blueprint.largest_packed * _compute_size(blueprint)
        highest["unpacked weights"] = unpacked
        backward[1]["unpacked weights"] = unpacked
    in_backward = backward[1].total() >= step.total()
    here = config.model.frozen_device in ("auto", device)
    return Memory(
        resting={
            "weights": blueprint.weights,
            "quantization constants": blueprint.constants,
            "reference copy": blueprint.copy if here else 0,
            "optimizer state": sum(blueprint.state.values()),
        },
        highest=highest,
        at_peak=dict(backward[1] if in_backward else step),
        moment="forward and backward pass" if in_backward else "optimizer step",
        state=blueprint.state,
        elsewhere=0 if here else blueprint.copy,
        unknown=unknown,
    )


def _objectives(config: RunConfig) -> list[Objective]:
    """The objectives that are trained, one of each kind: what a pass holds does not depend on its arithmetic."""
    found = [find_objective(name, config.objectives[name].loss) for name in taking_turns(config)]
    return list({_kind(objective): objective for objective in found}.values())


def _kind(objective: Objective) -> tuple[object, ...]:
    whole = "logits" in objective.needs and objective.loss
    return whole, "activations" in objective.needs, objective.compares_whole, _answers(objective)


def _answers(objective: Objective) -> int:
    """How many answers to each question the objective reads at once."""
    return sum(kind in objective.needs for kind in ANSWERS) or 1


def _workspace(config: RunConfig, blueprint: Blueprint, device: str) -> int:
    """What an optimizer's step works with, besides what is there before and after it."""
    if "muon" in config.optimizer.name:
        return MUON_COPIES * 4 * blueprint.largest
    if config.optimizer.name.startswith("adamw"):
        return 0
    return COPIES * 4 * min(blueprint.largest, PIECE.get(device.partition(":")[0], OTHER_PIECE))


def _compute_size(blueprint: Blueprint) -> int:
    return int(next(blueprint.model.parameters()).element_size())


def _booked(
    config: RunConfig, blueprint: Blueprint, objective: Objective, rows: Rows, *, accumulates: bool
) -> tuple[Counter[str], Counter[str]]:
    """What each part holds at most, and what all hold when the whole does, in one objective's passes.

    All layers but a few are left out, and then counted: each holds as much as the next.
    """
    depth, depths = len(layers_of(blueprint.model)), _depths(blueprint.model, objective)
    found = [_pass(config, blueprint.model, objective, rows, layers=n, accumulates=accumulates) for n in depths]
    if len(depths) == 1:
        highest, at_peak = found[0]
    else:
        highest, at_peak = (_extended(counts, depths, depth) for counts in zip(*found, strict=True))
    if accumulates:
        at_peak["gradients"] = blueprint.trained
    return highest, at_peak


def _depths(model: nn.Module, objective: Objective) -> list[int]:
    """How many layers to count with: two small numbers, but all that are run where some are frozen, as with rmu."""
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers_of(model)]
    if "activations" in objective.needs:
        return [len(trained) - trained[::-1].index(True)]  # the layers above the one that is steered are not run
    return [FEW, 2 * FEW] if all(trained) and len(trained) > 2 * FEW else [len(trained)]


def _extended(counts: Sequence[Counter[str]], depths: Sequence[int], depth: int) -> Counter[str]:
    """Counts at two depths, drawn out to a third."""
    first, last = counts[0], counts[-1]
    layers = (depth - depths[-1]) / max(1, depths[-1] - depths[0])
    return Counter({part: max(0, round(last[part] + layers * (last[part] - first[part]))) for part in last | first})


def _pass(
    config: RunConfig, model: nn.Module, objective: Objective, rows: Rows, *, layers: int, accumulates: bool
) -> tuple[Counter[str], Counter[str]]:
    """Take the forward and the backward pass of one micro-batch on paper, with the first layers alone."""
    with FakeTensorMode(allow_non_fake_inputs=True), _as_trained(config):
        model = _on_paper(model)
        del layers_of(model)[layers:]
        ids = torch.zeros(rows.rows, rows.length, dtype=torch.long)
        counted = rows.rows * min(rows.counted, rows.length - 1)
        known = [*model.parameters(), *model.buffers()]
        if accumulates:
            for p in model.parameters():
                p.grad = torch.empty_like(p) if p.requires_grad else None
            known += [p.grad for p in model.parameters() if p.grad is not None]
        ledger = Ledger(known)
        with ledger, _gradients_booked(model, ledger):
            loss = _loss(model, objective, ids, counted, ledger)
            ledger.open_account("activations")
            loss.backward()  # type: ignore[no-untyped-call]
    return ledger.highest, ledger.at_peak


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of the decoder; an empty list of none where there is no such row of them."""
    lm = causal_lm(model)
    depth = lm.config.get_text_config().num_hidden_layers
    rows = [part for part in lm.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return rows[0] if rows else nn.ModuleList()


def _on_paper(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device that runs as on a CPU, where attention has its frugal kernel."""
    made: dict[int, Any] = {}
    for weight in model.parameters():
        made[id(weight)] = nn.Parameter(torch.empty_like(weight, device="cpu"), requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        made[id(buffer)] = torch.empty_like(buffer, device="cpu")
    return copy.deepcopy(model, made)


@contextmanager
def _as_trained(config: RunConfig) -> Iterator[None]:
    """Mixed precision as the loop has it."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.model.mixed_precision)
    with torch.autocast("cpu", kind, enabled=kind is not None):
        yield


@contextmanager
def _gradients_booked(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Book each parameter's gradient as one when it has arrived."""

    def arrived(p: Tensor) -> None:
        assert p.grad is not None
        ledger.move(p.grad, "gradients")

    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Batch:
    """Rows without padding, of which nothing needs to be known but the size."""

    def __init__(self, ids: Tensor) -> None:
        self.input_ids = ids
        self.attention_mask = torch.ones_like(ids)
        self.labels = ids


def _loss(model: nn.Module, objective: Objective, ids: Tensor, counted: int, ledger: Ledger) -> Tensor:
    """The loss of one micro-batch, over as many answers as the objective reads of each row."""
    answers = range(_answers(objective))
    return torch.stack([_one_answer(model, objective, ids, counted, ledger) for _ in answers]).sum()


def _one_answer(model: nn.Module, objective: Objective, ids: Tensor, counted: int, ledger: Ledger) -> Tensor:
    lm = causal_lm(model)
    head: Any = WholeHead(lm) if lm.get_output_embeddings() is None or lm.get_decoder() is lm else SplitHead(lm)
    ledger.open_account("activations")
    hidden = [_some(head.hidden(_Batch(ids)), counted)]
    if objective.compares_whole:
        with torch.no_grad():
            hidden.append(_some(head.hidden(_Batch(ids)), counted))
    if "activations" in objective.needs:
        return widen(hidden[0]).square().mean()
    ledger.open_account("logits")
    target = ids.view(-1)[:1].expand(counted)
    compared = objective.compares_whole

    def piece(aim: Tensor, states: Tensor, *old: Tensor) -> Tensor:
        logits = widen(head.logits(states))
        if "logits" not in objective.needs:
            return nll(logits, aim)
        reference = None
        if compared:
            with torch.no_grad():
                reference = widen(head.logits(*old))
        found: Mapping[str, Any] = {"logits": logits, "target": aim, "logits_reference": reference}
        assert objective.loss is not None
        values: Tensor = objective.loss(**{need: found[need] for need in objective.needs}, **objective.defaults)
        return values

    return in_pieces(piece, (target, *hidden), head.vocabulary).sum()


def _some(states: Tensor, counted: int) -> Tensor:
    """As many hidden states as positions count, gathered as a mask gathers them."""
    flat = states.reshape(-1, states.shape[-1])
    return flat.index_select(0, torch.zeros(counted, dtype=torch.long, device=flat.device))
