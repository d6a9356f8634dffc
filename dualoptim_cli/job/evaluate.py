"""The measurement alone as one function: any model, its rows and benchmarks, beside another model, against gates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import demo
from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.inputs import encode
from dualoptim_cli.job.measuring import (
    UNSEEN,
    asked_judges,
    attack_model,
    check_evaluation,
    count_gates,
    knew_any,
    load_model,
    locate_reference,
    measure_other,
    measure_reference,
    measure_sets,
    usual_gates,
)
from dualoptim_cli.job.phases import collected, phase, use_threads
from dualoptim_cli.objectives import forgotten

if TYPE_CHECKING:
    from dualoptim_cli.data import Records
    from dualoptim_cli.evaluate.gates import Gate, Judgment
    from dualoptim_cli.evaluate.results import Results, Sets
    from dualoptim_cli.model.load import Loaded, Located


@dataclass(frozen=True)
class Asked:
    """What is measured beside what the config says.

    `suites` are benchmarks and where they lie; `against` is a model, a run, or a file of results; `lm_eval` names
    tasks of lm-evaluation-harness. `own_gates`: the config's gates are those of the run that the model is.
    """

    suites: tuple[tuple[str, str], ...] = ()
    against: str | None = None
    lm_eval: tuple[str, ...] = ()
    own_gates: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What was found: the model's scores, those it is held against, and the gates."""

    model: str
    results: Results
    before: Results | None
    reference: Results | None
    judgments: tuple[Judgment, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(judgment.passed for judgment in self.judgments)

    @property
    def verdict(self) -> str:
        """One line on the gates; empty without any."""
        return count_gates(self.judgments)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt eval --json`, and what `--against` reads."""
        return {
            "model": self.model,
            "verdict": self.verdict,
            "passed": self.passed,
            "gates": [judgment.to_json() for judgment in self.judgments],
            "seconds": round(self.seconds, 3),
            "results": self.results.to_json(),
            "against": self.before and self.before.to_json(),
            "reference": self.reference and self.reference.to_json(),
        }


@dataclass
class _Inputs:
    """What was opened and checked before any model is loaded."""

    records: dict[str, Records] = field(default_factory=dict)
    forget: list[str] = field(default_factory=list)
    model: Located | None = None
    other: Located | Results | None = None


def evaluate(config: RunConfig, asked: Asked = Asked(), *, on_event: OnEvent = lambda _: None) -> Evaluation:
    """Measure the config's model on its sets and on benchmarks; attack and judge it where that is asked for.

    Models are loaded one after the other, never two at a time: the reference, the one to hold against, the model.
    Raises UserError for every fault of settings, data, folders and gates before the first of them is loaded.
    """
    begun = time.perf_counter()
    use_threads(config.threads)
    config = demo.prepare(config, on_event)
    inputs = _open(config, asked, on_event)
    gates = _check(config, asked, inputs)
    assert inputs.model is not None
    records, forget = inputs.records, inputs.forget
    harness = _harness(config, asked, on_event)
    reference = measure_reference(config, records, on_event, forget=forget)
    before = _held_against(config, inputs, reference, on_event, harness)
    loaded = load_model(config, inputs.model, "the model", on_event)
    examples = encode(config, records, loaded.tokenizer, on_event)
    results = measure_sets(
        config, examples, loaded, "Measuring the model", on_event, reference=reference, forget=forget
    )
    _check_alike(results, before, asked)
    attacks = _attacks(config, gates)
    results = attack_model(
        config, attacks, examples, loaded, results, on_event, forget=forget, width=inputs.model.width
    )
    results = replace(results, sets={**results.sets, **harness(loaded)})
    judgments = _judge(config, gates, results, _before_the_run(config, asked, results) or before, reference, forget)
    return Evaluation(config.model.name, results, before, reference, judgments, time.perf_counter() - begun)


def _open(config: RunConfig, asked: Asked, on_event: OnEvent) -> _Inputs:
    """Read all data and look at all folders; every fault of them all is raised together."""
    from dualoptim_cli.data import check_named, load_records
    from dualoptim_cli.evaluate.suites import load_suite, to_forget
    from dualoptim_cli.model.load import locate

    own = {name: part.data for name, part in config.objectives.items()}
    more = {"holdout": config.data.holdout, UNSEEN: config.data.unseen}
    own |= {name: source for name, source in more.items() if source}
    found, faults = _Inputs(), list[UserError]()
    with phase("Reading the data", on_event):
        for name, source in own.items():
            with collected(faults):
                found.records[name] = load_records(source, columns=config.data.columns)
        with collected(faults):
            check_named([*found.records.values()], config.data.columns)
        for suite, place in asked.suites:
            with collected(faults):
                sets = load_suite(suite, place, given=own)
                found.forget += to_forget(suite, sets)
                found.records |= sets
        _check_overlaps({name: found.records[name] for name in own if name in found.records}, config, faults)
    found.forget = list(dict.fromkeys([*forgotten(config.objectives), *found.forget]))
    with collected(faults):
        found.model = locate(
            config.model.name, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
        )
    with collected(faults):
        locate_reference(config)
    with collected(faults):
        found.other = _other(asked.against or _own_run(config), config)
    if not found.records and not asked.lm_eval and not faults:
        faults.append(UserError("There is nothing to measure.", "Pass --forget, --retain, --holdout or --suite."))
    raise_all(faults)
    for name, each in found.records.items():
        for note in each.notes:
            on_event(Note(f"{name}: {note}", "warning"))
    return found


def _check_overlaps(records: Mapping[str, Records], config: RunConfig, faults: list[UserError]) -> None:
    """Find rows to forget among those to keep, and rows that the model was shown among the unseen."""
    from dualoptim_cli.data import check_overlap
    from dualoptim_cli.data.records import OVERLAP_HINT, UNSEEN_HINT

    apart = [name for name in (*forgotten(config.objectives), UNSEEN) if name in records]
    for at, one in enumerate(apart):
        for other in records.keys() - {*apart[: at + 1], *forgotten(config.objectives)}:
            with collected(faults):
                check_overlap(records[one], records[other], UNSEEN_HINT if UNSEEN in (one, other) else OVERLAP_HINT)


def _own_run(config: RunConfig) -> str | None:
    """A run's own file of measurements, when the model is a run: it holds how the model was before."""
    file = Path(config.model.name) / "metrics.json"
    return str(file) if file.is_file() and (file.parent / "config.yaml").is_file() else None


def _other(name: str | None, config: RunConfig) -> Located | Results | None:
    """What is held against: results from a file, or a model to be measured."""
    from dualoptim_cli.model.load import locate

    if name is None:
        return None
    if Path(name).is_file():
        return read_results(Path(name), own=name == _own_run(config))
    return locate(name, trust_remote_code=config.model.trust_remote_code)


def read_results(file: Path, *, own: bool = False) -> Results:
    """The results in a file that `dualopt eval --out` or a run wrote: of a run those after, or before for its `own`.

    Raises UserError for any other file.
    """
    from dualoptim_cli.evaluate.results import Results

    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({type(error).__name__}).", "Give a file of results.") from None
    if isinstance(data, dict):
        keys = ("before",) if own else ("results", "after")
        data = next((data[key] for key in keys if key in data), data)
    try:
        return Results.from_json(data)
    except UserError as fault:
        raise UserError(f"{file}: {fault.message}", fault.hint) from None


def _check(config: RunConfig, asked: Asked, inputs: _Inputs) -> list[Gate]:
    """Check gates, attacks and tasks by what will be measured."""
    from dualoptim_cli.evaluate.gates import Scope
    from dualoptim_cli.evaluate.harness import check_harness
    from dualoptim_cli.evaluate.results import Results

    faults: list[UserError] = []
    with collected(faults):
        check_harness(asked.lm_eval)
    gates: list[Gate] = []
    scope = Scope(
        sets=tuple(inputs.records),
        forget=tuple(inputs.forget),
        has_before=inputs.other is not None,
        has_reference=config.eval.reference is not None,
        judges=asked_judges(config),
        harness=asked.lm_eval,
        quantized=config.model.load_in is not None,
    )
    with collected(faults):
        gates = check_evaluation(config, scope)
    if gates and not (scope.has_before or scope.has_reference):
        faults.append(
            UserError(
                "Gates need another model: without one, nothing tells a model that forgot from a destroyed one.",
                "Pass --against with the model before, or --reference.",
            )
        )
    if inputs.records and isinstance(inputs.other, Results):  # said before minutes of measuring, and not after
        with collected(faults):
            how = {"rows": config.eval.rows, "seed": config.seed, "max_new_tokens": config.eval.max_new_tokens}
            settings = {**inputs.other.settings, **how}
            _check_alike(replace(inputs.other, settings=settings), inputs.other, asked)
    raise_all(faults)
    return gates


def _held_against(
    config: RunConfig,
    inputs: _Inputs,
    reference: Results | None,
    on_event: OnEvent,
    more: Callable[[Loaded], Sets],
) -> Results | None:
    from dualoptim_cli.evaluate.results import Results

    if inputs.other is None or isinstance(inputs.other, Results):
        return inputs.other
    return measure_other(
        config,
        inputs.other,
        inputs.records,
        "the other model",
        on_event,
        reference=reference,
        forget=inputs.forget,
        more=more,
    )


def _check_alike(results: Results, before: Results | None, asked: Asked) -> None:
    """Refuse to compare what was measured in different ways."""
    unlike = results.unlike(before) if before and results.sets else []
    if unlike:
        other = asked.against or "the measurement before the run"
        raise UserError(
            f"These results do not compare with {other}: {'; '.join(unlike)}.",
            "Measure both alike, or give a model to --against: it is measured on the same rows.",
        )


def _before_the_run(config: RunConfig, asked: Asked, results: Results) -> Results | None:
    """What a run's own gates speak of, whatever else the run is shown beside: the model as it was before the run."""
    own = _own_run(config)
    if own is None or asked.against is None or not asked.own_gates:
        return None
    found = read_results(Path(own), own=True)
    return None if results.unlike(found) else found


def _attacks(config: RunConfig, gates: Sequence[Gate]) -> list[str]:
    """The attacks that were asked for, and those that gates name; unasked, none."""
    from dualoptim_cli.evaluate.attacks import choose_attacks

    asked = [] if config.eval.attacks == "auto" else choose_attacks(config.eval.attacks)
    return list(dict.fromkeys([*asked, *(gate.attack for gate in gates if gate.attack)]))


def _harness(config: RunConfig, asked: Asked, on_event: OnEvent) -> Callable[[Loaded], Sets]:
    """What runs the tasks of lm-evaluation-harness on a model; without tasks, nothing."""
    from dualoptim_cli.evaluate.harness import run_harness

    def run(loaded: Loaded) -> Sets:
        if not asked.lm_eval:
            return {}
        rows, seed, batch_size = config.eval.rows, config.seed, config.eval.batch_size
        with phase("lm-evaluation-harness", on_event):
            return run_harness(
                loaded.model, loaded.tokenizer, asked.lm_eval, rows=rows, seed=seed, batch_size=batch_size
            )

    return run


def _judge(
    config: RunConfig,
    gates: Sequence[Gate],
    results: Results,
    before: Results | None,
    reference: Results | None,
    forget: Sequence[str],
) -> tuple[Judgment, ...]:
    """Hold the gates that were asked for; a run without gates of its own is held against the default ones."""
    from dualoptim_cli.evaluate.gates import judge

    if not gates and before is not None and _own_run(config) and config.eval.gates == "default":
        gates = usual_gates(before, knew=knew_any(before, forget), forget=forget)
    return tuple(judge(gates, results, before=before, reference=reference)) if gates else ()
