"""A snapshot of an optimizer's state as plain numbers: what `StateSummary.to_json` writes, typed and checked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dualoptim_cli.optim import StateSummary

Cosine = Annotated[float, Field(ge=-1.01, le=1.01)]  # rounding may take it a little beyond 1
Share = Annotated[float, Field(ge=0, le=1.01)]
Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # float32 ends at 3.4e38; sums of these stay finite
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Coded(_Strict):
    """What 8 bits make of a moment: shares of the codes in use and of the zeros, and the error relative to the norm."""

    used: Share
    zeros: Share
    error: Number | None


class Counts(_Strict):
    """What was counted over some tensors, by objective or by moment ("m.base"); None where there is no such number."""

    conflict: Cosine | None
    opposed: Share | None
    guarded: dict[str, Share]
    norms: dict[str, Number]
    bytes: dict[str, Count]
    nonfinite: Count
    coded: dict[str, Coded]


class StateSettings(_Strict):
    """Which optimizer kept the state, and how."""

    form: str
    bits: int
    bridge: Number | None = None
    guard: str | None = None
    betas: list[Number] | None = None
    base_betas: list[Number] | None = None
    second_bridge: Number | None = None
    second_moment: str | None = None


class Snapshot(_Strict):
    """The state after a step: in all, by layer, by kind of tensor and, of a whole state, by tensor.

    `why` says why there is no conflict, where there is none.
    """

    step: Count
    pair: list[str] | None = Field(min_length=2, max_length=2)
    why: str
    settings: StateSettings
    steps: dict[str, Count]
    nonfinite: dict[str, Count]
    all: Counts
    layers: dict[str, Counts]
    kinds: dict[str, Counts]
    tensors: dict[str, Counts] = {}

    @classmethod
    def of(cls, step: int, summary: StateSummary, *, by_tensor: bool = False) -> Snapshot:
        """The snapshot that a summary makes. Raises ValueError where a file brought the summary odd settings."""
        return cls.model_validate({"step": step, **summary.to_json(by_tensor=by_tensor)})

    def to_json(self) -> dict[str, Any]:
        """The same plain data that it was made of."""
        return self.model_dump(exclude_unset=True)
