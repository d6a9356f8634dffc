"""The main job as one function: load, measure, train, measure, judge, write. For the CLI and for library users."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import demo
from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Event, Note, OnEvent
from dualoptim_cli.job.identity import check_same_settings, go_on
from dualoptim_cli.job.inputs import open_inputs
from dualoptim_cli.job.measuring import (
    asked_gates,
    attack_model,
    check_evaluation,
    knew_any,
    measure_before,
    measure_reference,
    measure_sets,
    plan_attacks,
    tell,
    usual_gates,
)
from dualoptim_cli.job.phases import collected, phase, use_threads
from dualoptim_cli.job.planning import plan_inputs
from dualoptim_cli.job.training import Training, optimizer_settings
from dualoptim_cli.objectives import forgotten
from dualoptim_cli.recipes import to_yaml

if TYPE_CHECKING:
    from dualoptim_cli.evaluate.gates import Judgment
    from dualoptim_cli.evaluate.results import Results
    from dualoptim_cli.record.folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """What a finished run found: scores before and after, gates, one line of verdict, and where everything lies."""

    out: Path
    before: Results
    after: Results
    judgments: tuple[Judgment, ...]
    verdict: str
    knew: bool | None  # None: no objective takes rows away
    steps: int
    seconds: float
    reference: Results | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(judgment.passed for judgment in self.judgments)

    @property
    def weights(self) -> Path:
        """The folder of the model that the run left, or of the adapter."""
        return next((path for path in (self.out / "adapter",) if path.is_dir()), self.out / "model")

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt unlearn --json`."""
        return {
            "out": str(self.out),
            "model": str(self.weights),
            "verdict": self.verdict,
            "passed": self.passed,
            "gates": [judgment.to_json() for judgment in self.judgments],
            "model_knew_forget_rows": self.knew,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "reference": self.reference and self.reference.to_json(),
        }


def check_settings(config: RunConfig) -> None:
    """Find every fault of a config that can be found without its data and model; raise them together."""
    import torch

    from dualoptim_cli.model.lora import check_adapting
    from dualoptim_cli.objectives import check_objectives
    from dualoptim_cli.optim import OPTIMIZERS, build_optimizer

    def optimizer() -> None:
        probe = torch.zeros(2, 2, requires_grad=True)
        build_optimizer(config.optimizer.name, [("probe", probe)], lr=1.0, **optimizer_settings(config))

    def joint() -> None:
        name = config.optimizer.name
        if config.schedule.mode == "joint" and name in OPTIMIZERS and not OPTIMIZERS[name].joint:
            raise UserError(
                f'schedule.mode: "joint" takes one step on the summed losses, so {name} has nothing to tell apart.',
                "Use optimizer.name=adamw, or schedule.mode=alternate.",
            )

    def retain() -> None:
        if len(forgotten(config.objectives)) == len(config.objectives) and not config.allow_no_retain:
            raise UserError(
                "There is nothing to retain: without it, forgetting takes the rest of the model along.",
                "Pass --retain FILE with rows to keep, or --allow-no-retain if that is what you want.",
            )

    def rollback() -> None:
        if config.schedule.on_collapse == "rollback" and config.checkpoint.every == 0:
            raise UserError(
                "schedule.on_collapse: rollback needs a checkpoint to go back to, and checkpoint.every is 0.",
                "Set checkpoint.every to auto, or on_collapse to stop.",
            )

    faults: list[UserError] = []
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_objectives(config.objectives),
        optimizer,
        joint,
        retain,
        rollback,
        lambda: check_evaluation(config),
        lambda: check_adapting(config.model, config.lora),
    )
    for check in checks:
        with collected(faults):
            check()
    raise_all(faults)


def unlearn(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    on_event: OnEvent = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    origins: Mapping[str, str] | None = None,
) -> Outcome:
    """Do the whole job and leave its result in `out`.

    `should_stop` is asked after every step; True saves a checkpoint and raises UserError with exit code 130.
    Raises UserError for every fault of settings, data, model or folder before the model is loaded where that is
    possible, and for training that stopped itself. `origins` says where each setting came from, for the record.
    """
    from dualoptim_cli.record.folder import RunFolder
    from dualoptim_cli.train.memory import shortage_told

    check_settings(config)
    use_threads(config.threads)
    folder = RunFolder(out)
    with folder.lock(), shortage_told("While the model was loaded, measured or saved"):
        if resume and folder.finished and not config.checkpoint.keep_at_end:
            folder.forget_checkpoints()  # of a run that was killed between its last word and this
        folder.check(force=force, resume=resume)
        if resume:
            check_same_settings(folder.config, config)
        return _unlearn(config, folder, resume, on_event, should_stop, origins or {})


def _unlearn(
    config: RunConfig,
    folder: RunFolder,
    resume: bool,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    origins: Mapping[str, str],
) -> Outcome:
    """The job in a folder that is held for it alone."""
    from dualoptim_cli.evaluate.gates import judge
    from dualoptim_cli.files import disk_errors_as_user_error
    from dualoptim_cli.job.recording import Inputs, record_run
    from dualoptim_cli.plan.needs import refuse_impossible, warnings

    begun = time.perf_counter()
    gates = asked_gates(config)
    asked, config = config, demo.prepare(config, on_event)
    records, located = open_inputs(config, on_event)
    examples, plan, *_ = plan_inputs(config, records, located, out=folder.path, on_event=on_event)
    assert plan.needs is not None
    refuse_impossible(plan.needs)
    for choice in plan.choices:
        on_event(Note(str(choice)))
    for text in warnings(plan.needs):
        on_event(Note(text, "warning"))
    forget = forgotten(config.objectives)
    attacks, why_none = plan_attacks(config, gates, plan, sum(len(records[name]) for name in forget))
    if why_none:
        on_event(Note(why_none))
    reference = measure_reference(config, records, on_event, forget=forget)
    with phase("Loading the model", on_event):
        from dualoptim_cli.model.load import load
        from dualoptim_cli.model.lora import attach, check_trainable

        settings = config.model.model_dump(exclude={"name", "mixed_precision", "frozen_dtype", "frozen_device"})
        loaded = load(located, **settings, keep_adapters=config.lora is not None)
        if config.lora:
            loaded = attach(loaded, **config.lora.model_dump(), seed=config.seed)
        else:
            check_trainable(loaded)
    if resume:
        go_on(folder, asked)
    else:  # only now is anything of an earlier run replaced: all that can be wrong with the input is past
        folder.begin(to_yaml(asked))
    inputs = Inputs(asked, config, origins, plan, located, loaded, records)
    with record_run(folder, inputs, resume=resume) as recording:

        def hear(event: Event) -> None:
            recording(event)
            on_event(event)

        before = measure_before(config, folder, examples, loaded, hear, reference=reference, gates=gates, forget=forget)
        knew = knew_any(before, forget)
        if knew is False:
            hear(Note("The model does not know the forget rows: there is nothing for it to forget.", "warning"))
        origin = recording.record.model.before.digest
        trained = Training(config, plan, folder, examples, loaded, hear, should_stop, origin).run(resume=resume)
        with phase("Saving the model", hear), disk_errors_as_user_error("The model", folder.path):
            from dualoptim_cli.model.save import save_model

            weights = folder.path / ("adapter" if config.lora else "model")
            save_model(loaded, weights)
        after = measure_sets(config, examples, loaded, "Measuring after", hear, reference=reference, forget=forget)
        after = attack_model(config, attacks, examples, loaded, after, hear, forget=forget, width=located.width)
        held = gates or usual_gates(before, knew=knew, forget=forget)
        judgments = tuple(judge(held, after, before=before, reference=reference))
        verdict = tell(before, judgments, knew=knew, forget=forget)
        if trained.stopped:
            verdict = f"{trained.stopped.message} {verdict}"
        seconds = time.perf_counter() - begun
        outcome = Outcome(folder.path, before, after, judgments, verdict, knew, trained.steps, seconds, reference)
        found = outcome.to_json()
        folder.write_metrics({key: found[key] for key in found if key not in {"out", "model", "seconds"}})
        with phase("Writing the record", hear), disk_errors_as_user_error("The record", folder.path):
            recording.mark(weights, passed=outcome.passed, verdict=verdict)
            recording.finish(outcome, keep_checkpoints=config.checkpoint.keep_at_end, stopped=trained.stopped)
    if not config.checkpoint.keep_at_end:
        folder.forget_checkpoints()
    if trained.stopped:
        raise trained.stopped
    return outcome
