"""What an optimizer's state holds, tensor by tensor and in sums by layer, by kind and in all.

The conflict is that of `conflict`: the live panel, `state.json`, the page and `inspect-state` all show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch.optim import Optimizer

from dualoptim_cli.optim.inspect.conflict import Conflict, Source, moments_of, owners_of, tensors
from dualoptim_cli.optim.inspect.tally import Tally, tally
from dualoptim_cli.optim.partition import kind_of, layer_of

NO_DELTAS = "this optimizer keeps one average for all objectives, so it holds no directions to compare"
TOO_EARLY = "not every objective has had a step yet"
NO_SETTINGS = "the file does not say the optimizer's decays, without which there are no directions"

# The settings that say how to read a state; those with a usual value are shown where they have another.
SHOWN = {
    "bridge": None,
    "guard": None,
    "betas": None,
    "base_betas": None,
    "second_bridge": None,
    "second_moment": "dual",
}


@dataclass(frozen=True)
class TensorSummary:
    """What was counted over one tensor."""

    name: str
    layer: str
    kind: str
    tally: Tally


@dataclass(frozen=True)
class StateSummary:
    """A whole state: its tensors, the two objectives that were compared, and why there is no conflict, if so."""

    pair: tuple[str, str] | None
    steps: dict[str, int]  # of the base and of each objective: the most that any tensor has seen
    tensors: tuple[TensorSummary, ...]
    settings: dict[str, Any]
    why: str

    def by(self, name: Callable[[TensorSummary], str]) -> dict[str, Tally]:
        """The sums over the tensors that `name` calls the same, in the order of their first."""
        groups: dict[str, list[Tally]] = {}
        for one in self.tensors:
            groups.setdefault(name(one), []).append(one.tally)
        return {key: reduce(Tally.__add__, tallies) for key, tallies in groups.items()}

    @property
    def total(self) -> Tally:
        """The sum over all tensors."""
        return reduce(Tally.__add__, (one.tally for one in self.tensors), Tally())

    def conflict(self) -> Conflict | None:
        """The same as `measure_conflict` of this state."""
        if self.pair is None or self.total.products is None:
            return None
        by_layer, by_tensor = self.by(lambda one: one.layer), self.by(lambda one: one.name)
        return Conflict(*self.pair, self.total.conflict, _cosines(by_layer), _cosines(by_tensor))

    def to_json(self, *, by_tensor: bool = False) -> dict[str, Any]:
        """Everything as plain numbers with six figures: in all, by layer, by kind and, if asked, by tensor."""
        groups = {"layers": self.by(lambda one: one.layer), "kinds": self.by(lambda one: one.kind)}
        if by_tensor:
            groups["tensors"] = self.by(lambda one: one.name)
        facts: dict[str, Any] = {
            "pair": self.pair and list(self.pair),
            "why": self.why,
            "settings": self.settings,
            "steps": self.steps,
            "nonfinite": {one.name: one.tally.nonfinite for one in self.tensors if one.tally.nonfinite},
            "all": self.total.to_json(),
        }
        for key, tallies in groups.items():
            facts[key] = {name: counts.to_json() for name, counts in tallies.items()}
        rounded: dict[str, Any] = _rounded(facts)
        return rounded


@torch.no_grad()
def summarize_state(
    source: Source, first: str | None = None, second: str | None = None, *, sample: int = 1
) -> StateSummary:
    """Summarize live or saved state tensor by tensor, a piece at a time.

    `first` and `second` are the objectives to compare; by default the first two that the optimizer was told of.
    Norms and cosines are of everything; shares (of signs, of the guard, of codes) may be of one in `sample` pieces.
    """
    listed = [(name, state, group) for name, state, group in tensors(source) if moments_of(state)]
    owners: dict[str, None] = {}
    for _, state, group in listed:
        owners |= dict.fromkeys(owners_of(state, group))
    compared = [name for name in owners if name != "shared"][:2]
    if first and second:
        compared = [first, second]
    pair = None
    if len(compared) == 2:
        pair = (compared[0], compared[1])
    live = isinstance(source, Optimizer)
    summaries = tuple(
        TensorSummary(name, layer_of(name), kind_of(name), tally(state, group, pair, live=live, sample=sample))
        for name, state, group in listed
    )
    why = ""  # the state shows no conflict
    if not any(one.tally.products for one in summaries):
        why = TOO_EARLY
        if "shared" in owners:
            why = NO_DELTAS
        elif any("betas" not in group for *_, group in listed):
            why = NO_SETTINGS
    return StateSummary(pair, clocks(listed), summaries, settings_of(listed), why)


def _cosines(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """The conflict of each, where it is defined."""
    return {name: counts.conflict for name, counts in tallies.items() if counts.conflict is not None}


def clocks(listed: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, int]:
    """The steps of the base and of each objective: the most that any tensor has seen."""
    seen: dict[str, int] = {}
    for _, state, _ in listed:
        for key in state:
            if key.startswith("seen."):
                seen[key[5:]] = max(seen.get(key[5:], 0), int(state[key]))
    return seen


def settings_of(listed: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """What kind of optimizer kept this state, and the settings that say how to read it."""
    keys: set[str] = set()
    turned = False  # by Muon, which keeps no second moment
    for _, state, _ in listed:
        keys |= state.keys()
        turned = turned or not any(key.startswith("v.") for key in state)
    bits = 32
    if any(key.endswith(".scale") for key in keys):
        bits = 8
    if "m.shared" in keys:
        return {"form": "adamw", "bits": bits}
    form = "dualoptim"
    if keys & {"m.base", "v.base"}:
        form = "dualoptim+"
    if turned:
        form = "dualoptim+muon"
    facts: dict[str, Any] = {"form": form, "bits": bits}
    groups = [group for *_, group in listed]
    for name, usual in SHOWN.items():
        values = [group.get(name, usual) for group in groups]
        if values and values[0] not in (None, usual) and values.count(values[0]) == len(values):
            facts[name] = values[0]
    return facts


def _rounded(value: Any) -> Any:
    """Nested plain values with their numbers cut to six figures."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
