"""The measurement alone as one function: any model, its rows and benchmarks, beside another model, against gates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualoptim_cli import strict_json
from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.harness import check_harness, run_harness
from dualoptim_cli.evaluate.results import Results, Sets
from dualoptim_cli.events import OnEvent
from dualoptim_cli.files import check_apart
from dualoptim_cli.job.brief import Brief, Suite
from dualoptim_cli.job.opening import Opened, open_inputs
from dualoptim_cli.job.phases import collect, phase, use_threads
from dualoptim_cli.job.ruler import Ruler, count_gates
from dualoptim_cli.model.load import Loaded, Located
from dualoptim_cli.model.locate import locate
from dualoptim_cli.plan.precision import SETTING as PRECISION
from dualoptim_cli.recipes import telling_how_to_get


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


def evaluate(
    config: RunConfig,
    *,
    suites: Sequence[Suite] = (),
    against: str | None = None,
    lm_eval: Sequence[str] = (),
    own_gates: bool = True,
    profile: str | None = None,
    out: Path | None = None,
    on_event: OnEvent = lambda _: None,
) -> Evaluation:
    """Measure the config's model on its sets and on benchmarks; attack and judge it where gates and attacks are named.

    `suites` are benchmarks and where they are; `against` is a model, a run, or a file of results; `lm_eval` names
    tasks of lm-evaluation-harness. `own_gates`: the config's gates are those of the run that the model is. `profile`
    names another program whose conventions are taken. `out` is the file that the caller will write, which must be none
    that is read here.
    Models are loaded one after the other, never two at a time: the reference, the one to compare with, the model.
    Raises UserError for every fault of settings, data, folders and gates before the first of them is loaded.
    """
    begun = time.perf_counter()
    brief = Brief.to_measure(config, suites)
    use_threads(config.threads)
    opened, other = _open(brief, against, lm_eval, out, on_event)
    # What the gates of a run are about, whatever else it is shown beside: the model as it was before the run.
    own_before = _before_the_run(config) if against and own_gates else None
    opened = _measured_like(opened, other if isinstance(other, Results) else own_before)
    _check(opened, other, against, lm_eval)
    _check_alike_ahead(opened, own_before, None)

    def harness(loaded: Loaded) -> Sets:
        if not lm_eval:
            return {}
        how: dict[str, Any] = {"rows": config.eval.rows, "seed": config.eval.seed, "batch_size": config.eval.batch_size}
        with phase("lm-evaluation-harness", on_event):
            return run_harness(loaded.model, loaded.tokenizer, lm_eval, **how)

    ruler = Ruler.of(opened, on_event, profile=profile)
    before = (
        ruler.measure_other(other, "the other model", harness, is_before=True) if isinstance(other, Located) else other
    )
    loaded = ruler.load(opened.model, "the model")
    examples = opened.encode(loaded.tokenizer, on_event)
    known = own_before or before  # of a model alone, what it names now is what a later measurement counts by
    results = ruler.measure(loaded, examples, "Measuring the model", before=known, is_before=known is None)
    _check_alike(results, before, against)
    _check_alike(results, own_before, None)
    named = [gate.attack for gate in brief.gates if gate.attack]
    results = ruler.attack(list(dict.fromkeys([*(brief.attacks or ()), *named])), loaded, examples, results)
    results = replace(results, sets={**results.sets, **harness(loaded)})

    if before is not None:
        ruler.warn_of_disagreements(before, results)
    judgments: tuple[Judgment, ...] = ()
    if brief.gates or (before is not None and _own_run(config) and config.eval.gates == "default"):
        judgments = ruler.judge(results, own_before or before)
    return Evaluation(config.model.name, results, before, ruler.reference, judgments, time.perf_counter() - begun)


def _open(
    brief: Brief, against: str | None, lm_eval: Sequence[str], out: Path | None, on_event: OnEvent
) -> tuple[Opened, Located | Results | None]:
    """Open all that is measured and compared with; every fault of it all is raised together."""
    faults: list[UserError] = []
    opened = other = None
    with collect(faults):
        opened = open_inputs(brief, on_event)
    with collect(faults):
        other = _open_other(against or _own_run(brief.config), brief.config)
    with collect(faults):
        check_harness(lm_eval)
    if out is not None:
        sources = opened.sources if opened else brief.sources
        with collect(faults):
            check_apart(out, [*sources, *([("what is compared with", Path(against))] if against else [])])
    if opened and not opened.records and not lm_eval:
        faults.append(UserError("There is nothing to measure.", "Pass --forget, --retain, --holdout or --suite."))
    raise_all(faults)
    assert opened is not None
    return opened, other


def _own_run(config: RunConfig) -> str | None:
    """A run's own file of measurements, when the model is a run: it holds how the model was before."""
    file = Path(config.model.name) / "metrics.json"
    return str(file) if file.is_file() and (file.parent / "config.yaml").is_file() else None


def _open_other(name: str | None, config: RunConfig) -> Located | Results | None:
    """What the model is compared with: results from a file, or a model to be measured."""
    if name is None:
        return None
    if Path(name).is_file():
        return read_results(Path(name), own=name == _own_run(config))
    with telling_how_to_get([name], config.obtain):
        return locate(name, trust_remote_code=config.model.trust_remote_code)


def read_results(file: Path, *, own: bool = False) -> Results:
    """The results in a file that `dualopt eval --out` or a run wrote: of a run those after, or before for its `own`.

    Raises UserError for any other file.
    """
    try:
        data = strict_json.parse(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({type(error).__name__}).", "Give a file of results.") from None
    if isinstance(data, dict):
        keys = ("before",) if own else ("results", "after")
        data = next((data[key] for key in keys if key in data), data)
    try:
        return Results.from_json(data)
    except UserError as fault:
        raise UserError(f"{file}: {fault.message}", fault.hint) from None


def _measured_like(opened: Opened, other: Results | None) -> Opened:
    """What was opened, with the min-k% and the precision of the results to compare with, where the user named none."""
    config = opened.brief.config
    if other is not None and any(choice.setting == PRECISION for choice in opened.choices):
        model = config.model.model_copy(update={"mixed_precision": other.settings.get("mixed_precision", "no")})
        config = config.model_copy(update={"model": model})
        opened = replace(opened, brief=replace(opened.brief, config=config))
    if config.eval.min_k != "auto" or other is None or "min_k" not in other.settings:
        return opened
    evaluation = config.eval.model_copy(update={"min_k": other.settings["min_k"]})
    brief = replace(opened.brief, config=config.model_copy(update={"eval": evaluation}))
    return replace(opened, brief=brief)


def _check(opened: Opened, other: Located | Results | None, against: str | None, lm_eval: Sequence[str]) -> None:
    """Check gates and attacks by what will be measured, and what is compared with by how it was measured."""
    faults: list[UserError] = []
    with collect(faults):
        opened.brief.check_measures(has_before=other is not None, harness=lm_eval)
    if opened.brief.gates and other is None and opened.reference is None:
        faults.append(
            UserError(
                "Gates need another model: without one, nothing tells a model that forgot from a destroyed one.",
                "Pass --against with the model before, or --reference.",
            )
        )
    with collect(faults):
        _check_alike_ahead(opened, other if isinstance(other, Results) else None, against)
    raise_all(faults)


def _check_alike_ahead(opened: Opened, before: Results | None, against: str | None) -> None:
    """The same check by the settings, rather before the minutes of measuring than after them."""
    config = opened.brief.config
    if opened.records and before:
        how: dict[str, object] = {
            "rows": config.eval.rows,
            "seed": config.eval.seed,
            "max_new_tokens": config.eval.max_new_tokens,
            "min_k": opened.brief.min_k,
            "mixed_precision": config.model.mixed_precision,
        }
        _check_alike(replace(before, settings={**before.settings, **how}), before, against)


def _check_alike(results: Results, before: Results | None, against: str | None) -> None:
    """Refuse to compare what was measured in different ways."""
    unlike = results.unlike(before) if before and results.sets else []
    if unlike:
        raise UserError(
            f"These results do not compare with {against or 'the measurement before the run'}: {'; '.join(unlike)}.",
            "Measure both alike, or give a model to --against: it is measured on the same rows.",
        )


def _before_the_run(config: RunConfig) -> Results | None:
    """How the model was before the run that it is; None where it is no run."""
    own = _own_run(config)
    return read_results(Path(own), own=True) if own else None
