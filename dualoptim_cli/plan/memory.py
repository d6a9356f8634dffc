"""What a training step holds in memory, by part, and when that is most.

Weights, gradients and optimizer state are counted. Activations and logits are found by running the step on fake
tensors: the model and the objectives run as they will, on tensors that have sizes and lifetimes but no memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dualoptim_cli.data.batches import Batch, collate
from dualoptim_cli.data.encode import Encoded
from dualoptim_cli.objectives import Objective
from dualoptim_cli.objectives.forward import Task
from dualoptim_cli.objectives.heads import assume_halves, causal_lm
from dualoptim_cli.objectives.reference import Frozen
from dualoptim_cli.optim import find_optimizer
from dualoptim_cli.plan.allocations import Allocations
from dualoptim_cli.plan.blueprint import FLOAT, Blueprint
from dualoptim_cli.plan.setup import Setup
from dualoptim_cli.train.gradient import Method

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
UNKNOWN = "Activations and logits are not counted: what this model computes depends on its numbers."

# Layers of the two runs from which the others are extrapolated, once and twice as many. Even, since kinds of layers
# alternate (sliding and full attention).
FEW = 2

# Needs that are numbers noted before training: they cost no pass.
LIKELIHOODS_NOTED = frozenset({"answer_reference", "refusal_reference", "alternative_reference"})

# Bytes of each part.
Parts = Counter[str]


@dataclass(frozen=True)
class Rows:
    """The largest micro-batch: so many rows of at most so many tokens, of which at most `counted` have a loss.

    `of_kind` has the length and the counted tokens of those kinds of answers that are shorter: a refusal, say.
    """

    rows: int
    length: int
    counted: int
    of_kind: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def largest(self, kind: str) -> tuple[int, int]:
        """The tokens of the longest row with this kind of answer, and how many of them can count."""
        length, counted = self.of_kind.get(kind, (self.length, self.counted))
        return length, min(counted, length - 1)


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
        parts = [name for name in PARTS if highest.get(name)]
        return {
            "parts": {name: {"highest": highest[name], "at_peak": at_peak.get(name, 0)} for name in parts},
            "optimizer_state": self.state,
            "peak": self.peak,
            "moment": self.moment,
            "reference_copy_elsewhere": self.elsewhere,
            "unknown": self.unknown,
        }


def plan_memory(
    setup: Setup, blueprint: Blueprint, rows: Rows, *, method: Method, accumulates: bool, device: str
) -> Memory:
    """What a run's steps need on `device` when its micro-batches are as large as `rows`.

    `method` makes the gradient. `accumulates` says that a step has several micro-batches: then all gradients are
    there while activations are.
    """
    gradients = method.gradients * blueprint.trained
    highest: Parts = Counter()
    passes: Parts = Counter()  # what all parts hold when the pass that holds most does
    unknown = ""
    try:
        for name in _different_passes(setup.objectives):
            of_objective, at_peak = _passes(setup, blueprint, name, rows, method=method, accumulates=accumulates)
            highest |= of_objective
            passes = max(passes, at_peak, key=Counter.total)
    except (RuntimeError, NotImplementedError):  # so fake tensors refuse what depends on the numbers they lack
        highest, passes, unknown = Counter(), Counter({"gradients": gradients}), UNKNOWN
    highest["gradients"] = gradients
    highest["workspace of the step"] = find_optimizer(setup.optimizer.name).workspace(
        blueprint.largest, device.partition(":")[0]
    )
    if setup.model.load_in:  # one matrix at a time is unpacked to be multiplied with
        highest["unpacked weights"] = blueprint.largest_packed * _compute_size(blueprint)
        passes["unpacked weights"] = highest["unpacked weights"]
    step = Counter({part: highest[part] for part in ("gradients", "workspace of the step")})
    # Two moments compete. While the optimizer steps, activations and logits are gone and all gradients are there.
    in_passes = passes.total() >= step.total()
    here = setup.model.frozen_device in ("auto", device)
    return Memory(
        resting={
            "weights": blueprint.weights,
            "quantization constants": blueprint.constants,
            "reference copy": blueprint.copy if here else 0,
            "optimizer state": sum(blueprint.state.values()),
        },
        highest=dict(highest),
        at_peak=dict(passes if in_passes else step),
        moment="forward and backward pass" if in_passes else "optimizer step",
        state=blueprint.state,
        elsewhere=0 if here else blueprint.copy,
        unknown=unknown,
    )


def _different_passes(objectives: Mapping[str, Objective]) -> list[str]:
    """The objectives, but of those whose passes hold the same only one: each takes a second or so.

    Arithmetic on likelihoods holds next to nothing, that on logits makes a difference.
    """
    names: dict[object, str] = {}
    for name, objective in objectives.items():
        on_logits = objective.loss if "logits" in objective.needs else None
        options = tuple(sorted(objective.settings.items()))
        names[objective.needs - LIKELIHOODS_NOTED, on_logits, options] = name
    return list(names.values())


def _compute_size(blueprint: Blueprint) -> int:
    return int(next(blueprint.model.parameters()).element_size())


def _passes(
    setup: Setup, blueprint: Blueprint, name: str, rows: Rows, *, method: Method, accumulates: bool
) -> tuple[Parts, Parts]:
    """What each part holds at most in one objective's passes, and what all hold when the whole holds most.

    All layers but a few are left out, and then extrapolated.
    """
    depth, depths = len(layers_of(blueprint.model)), _depths(blueprint.model, setup.objectives[name])
    runs = [
        _run(setup, blueprint.model, name, rows, layers=n, backward=method.backward, accumulates=accumulates)
        for n in depths
    ]
    # Each layer holds as much as the next, so two runs of few layers give the rest by a straight line: the time does
    # not grow with the model.
    highest, at_peak = runs[0]
    if len(runs) > 1:
        highest, at_peak = (_extrapolated(parts, depths, depth) for parts in zip(*runs, strict=True))
    # Gradients that a method sets aside lie beside the one that the backward pass writes.
    at_peak["gradients"] += (method.gradients - 1) * blueprint.trained
    if accumulates:
        at_peak["gradients"] = method.gradients * blueprint.trained
    return highest, at_peak


def _depths(model: nn.Module, objective: Objective) -> list[int]:
    """How many layers to run with: two small numbers, but all where some are frozen or one is looked at (rmu)."""
    frozen, depth = False, len(layers_of(model))
    for layer in layers_of(model):
        frozen = frozen or not any(p.requires_grad for p in layer.parameters())
    if "activations" in objective.needs or frozen or depth <= 2 * FEW:
        return [depth]
    return [FEW, 2 * FEW]


def _extrapolated(counts: Sequence[Parts], depths: Sequence[int], depth: int) -> Parts:
    """Counts at two depths, drawn out to a third."""
    first, last = counts
    layers = (depth - depths[1]) / (depths[1] - depths[0])
    return Counter({part: max(0, round(last[part] + layers * (last[part] - first[part]))) for part in last | first})


def _run(
    setup: Setup, model: nn.Module, name: str, rows: Rows, *, layers: int, backward: bool, accumulates: bool
) -> tuple[Parts, Parts]:
    """Run an objective's own passes over one micro-batch on fake tensors, with the first layers alone."""
    objective = setup.objectives[name]
    vocabulary = causal_lm(model).config.get_text_config().vocab_size

    def part_of(tensor: Tensor) -> str:
        return "logits" if tensor.dim() > 1 and tensor.shape[-1] == vocabulary else "activations"

    with FakeTensorMode(allow_non_fake_inputs=True), _as_trained(setup.model.mixed_precision):
        model = _faked(model)
        if layers < len(layers_of(model)):
            del layers_of(model)[layers:]
        frozen = Frozen(dtype=FLOAT.get(setup.model.frozen_dtype))
        no_examples: Any = None  # the task is given batches
        task = Task(name, objective, no_examples, refusals=(), frozen=frozen, seed=0)
        batches: dict[str, Batch] = {}
        for kind in task.kinds:
            # One row of the length and with the counted tokens of the largest: what is held depends on nothing else.
            length, counted = rows.largest(kind)
            row = task.counted(Encoded((0,) * length, ((length - counted, length),)))
            batches[kind] = collate([row] * rows.rows, pad_id=0)
        resting = [*model.parameters(), *model.buffers()]
        assume_halves(model)  # whether a head comes apart is found by comparing numbers, which there are none of
        if objective.compares_whole:
            frozen.keep(model)
            with frozen.of(model) as before:
                assume_halves(before)
                resting += [*before.parameters(), *before.buffers()]
        if accumulates:  # from its second micro-batch on, a step goes forward with all gradients in memory
            for p in model.parameters():
                p.grad = torch.empty_like(p) if p.requires_grad else None
            resting += [p.grad for p in model.parameters() if p.grad is not None]
        references = dict.fromkeys(task.kinds, torch.zeros(rows.rows))
        allocations = Allocations(part_of, resting=resting)
        with allocations, _gradients_counted(model, allocations), torch.set_grad_enabled(backward):
            for loss in task.losses_of_batches(model, batches, references):
                if backward:
                    loss.backward()  # type: ignore[no-untyped-call]
    return allocations.highest, allocations.at_peak


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of the decoder; an empty list of none where there is no such row of them."""
    lm = causal_lm(model)
    depth = lm.config.get_text_config().num_hidden_layers
    rows = [part for part in lm.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return rows[0] if rows else nn.ModuleList()


def _faked(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device that runs as on a CPU, where attention has its frugal kernel."""
    made: dict[int, Any] = {}
    for weight in model.parameters():
        made[id(weight)] = nn.Parameter(torch.empty_like(weight, device="cpu"), requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        made[id(buffer)] = torch.empty_like(buffer, device="cpu")
    return copy.deepcopy(model, made)


@contextmanager
def _as_trained(mixed_precision: str) -> Iterator[None]:
    """Mixed precision as the loop has it."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    with torch.autocast("cpu", kind, enabled=kind is not None):
        yield


@contextmanager
def _gradients_counted(model: nn.Module, allocations: Allocations) -> Iterator[None]:
    """Count each parameter's gradient as one when it has arrived."""

    def arrived(p: Tensor) -> None:
        assert p.grad is not None
        allocations.move(p.grad, "gradients")

    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
