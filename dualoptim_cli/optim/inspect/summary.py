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


@dataclass(frozen=True)
class TensorSummary:
    """What rests for one tensor."""

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
        cosines = [{k: t.conflict for k, t in tallies.items()} for tallies in (by_layer, by_tensor)]
        known = [{k: value for k, value in part.items() if value is not None} for part in cosines]
        return Conflict(*self.pair, self.total.conflict, *known)

    def to_json(self, *, by_tensor: bool = False) -> dict[str, Any]:
        """Everything as plain numbers with six figures: in all, by layer, by kind and, if asked, by tensor."""
        groups = {"layers": self.by(lambda one: one.layer), "kinds": self.by(lambda one: one.kind)}
        if by_tensor:
            groups["tensors"] = self.by(lambda one: one.name)
        broken = {one.name: one.tally.nonfinite for one in self.tensors if one.tally.nonfinite}
        facts = {
            "pair": list(self.pair) if self.pair else None,
            "why": self.why,
            "settings": self.settings,
            "steps": self.steps,
            "nonfinite": broken,
            "all": self.total.to_json(),
            **{key: {name: t.to_json() for name, t in tallies.items()} for key, tallies in groups.items()},
        }
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
    owners = list(dict.fromkeys(owner for _, state, group in listed for owner in owners_of(state, group)))
    a, b, *_ = *([first, second] if first and second else [o for o in owners if o != "shared"]), None, None
    pair = (a, b) if a and b else None
    live = isinstance(source, Optimizer)
    found = tuple(
        TensorSummary(name, layer_of(name), kind_of(name), tally(state, group, pair, live=live, sample=sample))
        for name, state, group in listed
    )
    return StateSummary(pair, clocks(listed), found, settings_of(listed), _why_not(found, owners, listed))


def _why_not(found: Sequence[TensorSummary], owners: Sequence[str], listed: Sequence[Any]) -> str:
    """Why the state shows no conflict; empty when it does."""
    if any(one.tally.products for one in found):
        return ""
    if "shared" in owners:
        return NO_DELTAS
    return NO_SETTINGS if any("betas" not in group for *_, group in listed) else TOO_EARLY


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
    keys = {key for _, state, _ in listed for key in state}
    groups = [group for *_, group in listed]
    coded = any(key.endswith(".scale") for key in keys)
    if "m.shared" in keys:
        return {"form": "adamw", "bits": 8 if coded else 32}
    form = "dualoptim+" if keys & {"m.base", "v.base"} else "dualoptim"
    if any(not any(key.startswith("v.") for key in state) for _, state, _ in listed):
        form += "+muon" if form == "dualoptim" else "muon"
    first = groups[0] if groups else {}
    shown = [name for name in ("bridge", "guard", "betas", "base_betas") if name in first]
    shown += [
        name
        for name, usual in (("second_bridge", None), ("second_moment", "dual"))
        if first.get(name) not in (None, usual)
    ]
    known = {name: first[name] for name in shown if all(group.get(name) == first[name] for group in groups)}
    return {"form": form, "bits": 8 if coded else 32, **known}


def _rounded(value: Any) -> Any:
    """Nested plain values with their numbers cut to six figures."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
