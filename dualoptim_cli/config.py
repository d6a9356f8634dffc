"""The typed description of a run: what may be asked, and the defaults.

No torch and no files here: a config is checked against itself; `recipes` makes one from a file and flags.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Auto = Literal["auto"]


def _number(value: Any) -> Any:
    """Read what YAML 1.1 takes for a string: `1e-5` has no dot, so its parser does not see a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _no(value: Any) -> Any:
    """Read what YAML 1.1 takes for a truth value: `no` is a word here."""
    return "no" if value is False else value


def _word_or_gates(value: Any) -> Any:
    """Read one word or several gates, however many of them a flag gave."""
    words = [value] if isinstance(value, str) else value
    return words[0] if isinstance(words, list) and words in [["gates"], ["off"]] else words


def _no_gates(value: Any) -> Any:
    """Read `none` as no gates, and one gate as a list of one; `default` is the word for the usual ones."""
    words = [value] if isinstance(value, str) else value
    if words == ["none"]:
        return []
    return "default" if words == ["default"] else words


Until = Annotated[Literal["gates", "off"] | list[str], BeforeValidator(_word_or_gates)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Sources = str | Annotated[list[str], Field(min_length=1)]  # files, folders or datasets: several make one set


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which model, and how it is loaded."""

    name: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    mixed_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_no)] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False  # neither the token embeddings nor the output head are trained
    load_in: Literal["4bit", "8bit"] | None = None  # quantized base weights: they need `lora`
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the copy that a loss compares with
    frozen_device: str = "auto"
    trust_remote_code: bool = False


class LoraConfig(Section):
    """Train small matrices beside the weights instead of the weights."""

    rank: Count = 8
    alpha: Positive = 32.0
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    target: str | list[str] = "all-linear"
    adapter: str | None = None  # an adapter to go on with, whose rank, alpha and targets then hold


class ObjectiveConfig(Section):
    """One objective: its data, its loss, and its turn in the cycle."""

    data: Sources
    loss: str
    options: dict[str, Number] = {}
    weight: Positive = 1.0
    steps: Count = 1
    lr_ratio: Positive = 1.0


def _listed(value: Any) -> Any:
    """Read `a, b` on a command line as a list of two."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class DataConfig(Section):
    """How rows become tokens."""

    holdout: Sources | None = None
    unseen: Sources | None = None
    reworded: str | None = "auto"  # a file of questions that ask for the forget rows in other words; none: not asked
    general: str | None = "auto"  # plain text that tells of the language a model has; auto: a built-in one
    keywords: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] | None = None
    columns: Auto | dict[str, str] = "auto"
    template: str = "auto"
    max_length: Annotated[int, Field(ge=8)] = 512
    long_rows: Literal["auto", "cut", "split", "refuse"] = "auto"
    stride: Count | None = None  # of split rows: tokens from one window to the next; null lets them share just one
    refusals: str | None = None


class OptimizerConfig(Section):
    """Which optimizer, and its numbers. Null means: the optimizer's own default."""

    name: str = "dualoptim+"
    lr: Auto | Positive = "auto"
    state_bits: Literal[8, 32] = 32
    min_8bit_size: Count | None = None
    float32_embeddings: bool | None = None
    betas: tuple[Decay, Decay] | None = None
    base_betas: tuple[Decay, Decay] | None = None
    eps: Positive | None = None
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    bridge: Share | None = None
    second_bridge: Share | None = None
    second_moment: Literal["dual", "shared"] | None = None
    guard: Literal["moments", "none"] | None = None
    stochastic_rounding: bool | None = None
    compile: Auto | bool | None = None
    max_grad_norm: Positive | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The settings that are the optimizer's alone, as `build_optimizer` takes them."""
        return self.model_dump(exclude={"name", "lr", "max_grad_norm"})


class ScheduleConfig(Section):
    """How long, how much at a time, and how the rate moves."""

    mode: Literal["alternate", "joint"] = "alternate"
    steps: Auto | Count = "auto"
    until: Until = "off"  # or gates that end training before its steps are done
    batch_size: Auto | Count = "auto"
    micro_batch_size: Auto | Count = "auto"
    warmup: Share = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    on_nonfinite: Annotated[str, Field(pattern=r"^(stop|skip \d+)$")] = "stop"
    on_collapse: Literal["stop", "rollback", "ignore"] = "stop"

    @property
    def ends_by_rule(self) -> bool:
        """Whether training ends once gates hold, and not after a number of steps that the user chose."""
        return self.until != "off"


class CheckpointConfig(Section):
    """How often the whole state is saved, and how many saves are kept."""

    every: Auto | Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d+m$")] = "auto"  # steps; 10m: minutes
    keep: Count = 1
    keep_at_end: bool = False


class EvalConfig(Section):
    """What is measured before and after."""

    rows: Literal["all"] | Count = 200
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # draws the rows to measure: runs of other seeds measure the same
    max_new_tokens: Count = 128
    batch_size: Count = 32
    gates: Annotated[Literal["default"] | list[str], BeforeValidator(_no_gates)] = "default"  # none: the floor alone
    attacks: str | list[str] = "auto"  # auto, none, quick, all, or names
    every: Count | None = None  # steps from one probe to the next
    probe_rows: Auto | Count = "auto"  # of each set
    probe_answers: Count | None = None  # of every so many probes, one has the model write answers, too
    reference: str | None = None  # a model retrained without the forget rows
    answer_ppl: bool = False  # load the model before unlearning once more at the end, to rate what is said now
    similarity_model: str | None = None
    entailment_model: str | None = None
    min_k: Auto | Annotated[Share, Field(gt=0)] = "auto"  # of an answer's tokens, for membership inference by min-k%


GENERAL = "general"  # the set of plain text that tells of general ability
USUAL: dict[str, dict[str, Any]] = {"forget": {"loss": "npo-idk"}, "retain": {"loss": "gd"}}


class RunConfig(Section):
    """Everything a run can be told."""

    request_id: str | None = None
    allow_no_retain: bool = False
    obtain: dict[str, str] = {}  # a model or source that is not shipped → one line on how to get it
    model: ModelConfig
    objectives: dict[str, ObjectiveConfig]
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    lora: LoraConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual_losses(cls, values: Any) -> Any:
        """An objective named forget or retain has a usual loss."""
        if not isinstance(values, dict) or not isinstance(values.get("objectives"), dict):
            return values
        objectives = {
            name: {**USUAL.get(name, {}), **part} if isinstance(part, dict) else part
            for name, part in values["objectives"].items()
        }
        return {**values, "objectives": objectives}

    @model_validator(mode="before")
    @classmethod
    def _none_is_null(cls, values: Any) -> Any:
        """`reworded: none` and `general: none` are null, since a command line has no null."""
        data = values.get("data") if isinstance(values, dict) else None
        if not isinstance(data, dict):
            return values
        nothing = {name: None for name in ("reworded", "general") if data.get(name) == "none"}
        return {**values, "data": {**data, **nothing}}

    @model_validator(mode="after")
    def _objectives_have_plain_names(self) -> RunConfig:
        for name in self.objectives:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(
                    f'objectives: "{name}" cannot be a name: gates, tables and files are named by it. '
                    "Use letters, digits, - and _."
                )
            if name == GENERAL:
                raise ValueError(
                    f'objectives: "{name}" is the name of the plain text that every run measures. Choose another.'
                )
        return self

    @model_validator(mode="after")
    def _joint_has_one_rate(self) -> RunConfig:
        rated = [f"objectives.{name}.lr_ratio" for name, part in self.objectives.items() if part.lr_ratio != 1]
        if self.schedule.mode == "joint" and rated:
            raise ValueError(
                f'{" and ".join(rated)}: a "joint" step is one of all objectives, at one rate. '
                "Leave it out and give the objective a weight, or use schedule.mode=alternate."
            )
        return self
