"""The main job as one function: load, measure, train, measure, judge, write. For the CLI and for library users."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import demo
from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.plan import Plan, plan_run
from dualoptim_cli.recipes import leaves, to_yaml
from dualoptim_cli.train.events import (
    CheckpointSaved,
    Event,
    Note,
    OnEvent,
    PhaseAdvanced,
    PhaseEnded,
    PhaseStarted,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dualoptim_cli.data import Examples, Records, Schedule
    from dualoptim_cli.evaluate.gates import Gate, Judgement
    from dualoptim_cli.evaluate.results import Results
    from dualoptim_cli.model.load import Loaded, Located
    from dualoptim_cli.objectives.forward import Task
    from dualoptim_cli.record.folder import RunFolder

KNOWN_PROBABILITY, KNOWN_RECALL = 0.1, 0.3
"""A model below both on the forget rows has nothing to forget. On the scale of the lab models: one that never saw
the rows has .002 and .12, one that knows them .995 and .98."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run found: scores before and after, gates, one line of verdict, and where everything lies."""

    out: Path
    before: Results
    after: Results
    judgements: tuple[Judgement, ...]
    verdict: str
    knew: bool
    steps: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(judgement.passed for judgement in self.judgements)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt unlearn --json`."""
        return {
            "out": str(self.out),
            "model": str(self.out / "model"),
            "verdict": self.verdict,
            "passed": self.passed,
            "gates": [judgement.to_json() for judgement in self.judgements],
            "model_knew_forget_rows": self.knew,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def check_settings(config: RunConfig) -> None:
    """Find every fault of a config that can be found without its data and model; raise them together."""
    import torch

    from dualoptim_cli.objectives import check_objectives
    from dualoptim_cli.optim import build_optimizer

    def optimizer() -> None:
        probe = torch.zeros(2, 2, requires_grad=True)
        build_optimizer(config.optimizer.name, [("probe", probe)], lr=1.0, **_optimizer_settings(config))

    def retain() -> None:
        if len(config.objectives) < 2 and not config.allow_no_retain:
            raise UserError(
                "There is nothing to retain: without it, forgetting takes the rest of the model along.",
                "Pass --retain FILE with rows to keep, or --allow-no-retain if that is what you want.",
            )

    faults: list[UserError] = []
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_objectives(config.objectives),
        optimizer,
        retain,
        lambda: _asked_gates(config),
    )
    for check in checks:
        with _collected(faults):
            check()
    raise_all(faults)


def _asked_gates(config: RunConfig) -> list[Gate]:
    """The gates that were asked for, checked; none stand for the default ones, which follow the measurement."""
    from dualoptim_cli.evaluate.gates import check_gates

    sets = [*config.objectives, *(["holdout"] if config.data.holdout else [])]
    texts = config.eval.gates if isinstance(config.eval.gates, list) else []
    return check_gates(texts, sets=sets, attacks=(), has_reference=False)


def unlearn(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    on_event: OnEvent = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Do the whole job and leave its result in `out`.

    `should_stop` is asked after every step; True saves a checkpoint and raises UserError with exit code 130.
    Raises UserError for every fault of settings, data, model or folder before the model is loaded where that is
    possible, and for training that stopped itself.
    """
    from dualoptim_cli.evaluate.gates import judge
    from dualoptim_cli.record.folder import RunFolder
    from dualoptim_cli.train.checkpoint import write_atomic

    begun = time.perf_counter()
    check_settings(config)
    gates = _asked_gates(config)
    folder = RunFolder(out)
    folder.check(force=force, resume=resume)
    asked, config = config, demo.prepare(config, on_event)
    records, located = _open(config, on_event)
    plan = plan_run(config, {name: len(records[name]) for name in config.objectives}, located.width)
    for choice in plan.choices:
        on_event(Note(str(choice)))
    with _phase("Loading the model", on_event):
        from dualoptim_cli.model.load import load

        settings = config.model.model_dump(exclude={"name", "mixed_precision"})
        loaded = load(located, **settings)
    examples = _encode(config, records, loaded, on_event)
    if not resume:  # only now is anything of an earlier run replaced: all that can be wrong with the input is past
        folder.begin(to_yaml(asked))
    before = _before(config, folder, examples, loaded, on_event)
    knew = _knew(before)
    if not knew:
        on_event(Note("The model does not know the forget rows: there is nothing for it to forget.", "warning"))
    run = _Run(config, plan, folder, examples, loaded, on_event, should_stop)
    steps = run.train(resume=resume)
    with _phase("Saving the model", on_event):
        _save_model(loaded, folder.model)
    after = _measure(config, examples, loaded, "Measuring after", on_event)
    judgements = tuple(judge(gates or _usual_gates(before, knew=knew), after, before=before))
    verdict = tell(before, judgements, knew=knew)
    outcome = Outcome(out, before, after, judgements, verdict, knew, steps, time.perf_counter() - begun)
    found = outcome.to_json()
    folder.write_metrics({key: found[key] for key in found if key not in {"out", "model", "seconds"}})
    write_atomic(folder.model / "dualopt.json", json.dumps({"passed": outcome.passed, "verdict": verdict}))
    folder.forget_checkpoints()
    return outcome


def tell(before: Results, judgements: Sequence[Judgement], *, knew: bool) -> str:
    """One line of verdict: whether there was anything to forget, and how many gates hold."""
    failed = [judgement.gate for judgement in judgements if not judgement.passed]
    if failed:
        word = f"{len(failed)} of {len(judgements)} gates failed: {'; '.join(failed)}."
    else:
        word = f"All {len(judgements)} gates hold."
    if knew:
        return word
    recall = _recall(before, "forget")
    return (
        f"Nothing to forget: the model did not know these rows (ROUGE-L {recall:.2f}), so none were forgotten. {word}"
    )


def _usual_gates(before: Results, *, knew: bool) -> list[Gate]:
    """The default gates; of a model that never knew the forget rows, only those that keep the rest."""
    from dualoptim_cli.evaluate.gates import default_gates

    return [gate for gate in default_gates(before) if knew or not gate.path.startswith("forget.")]


def _recall(results: Results, name: str) -> float:
    return float(results.score(f"{name}.rougeL").value or 0.0)


def _knew(before: Results) -> bool:
    """Whether there is anything to forget: the model answers the forget rows, or finds their answers likely."""
    if "forget" not in before.sets:
        return True
    probability = float(before.score("forget.prob").value or 0.0)
    return probability >= KNOWN_PROBABILITY or _recall(before, "forget") >= KNOWN_RECALL


def _open(config: RunConfig, on_event: OnEvent) -> tuple[dict[str, Records], Located]:
    """Read through all data and look at the model's folder; every fault of them all is raised together."""
    from dualoptim_cli.data import check_overlap, load_records, load_refusals
    from dualoptim_cli.model.load import locate
    from dualoptim_cli.objectives import check_rows

    sources = {name: part.data for name, part in config.objectives.items()}
    if config.data.holdout:
        sources["holdout"] = config.data.holdout
    faults: list[UserError] = []
    records: dict[str, Records] = {}
    with _phase("Reading the data", on_event):
        with _collected(faults):
            load_refusals(config.data.refusals)
        for name, source in sources.items():
            with _collected(faults):
                records[name] = load_records(source, columns=config.data.columns)
        for name, part in config.objectives.items():
            if name in records:
                with _collected(faults):
                    check_rows(name, part.loss, records[name].kind)
        if "forget" in records:
            for name in sorted(records.keys() - {"forget"}):
                with _collected(faults):
                    check_overlap(records["forget"], records[name])
    located: Located | None = None
    with _collected(faults):
        located = locate(
            config.model.name, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
        )
    raise_all(faults)
    assert located is not None
    if located.note:
        on_event(Note(located.note))
    for name, found in records.items():
        columns = ", ".join(f"{role} from {column}" for role, column in found.columns.items())
        on_event(Note(f"{name}: {len(found)} rows of {found.name} ({columns})"))
        for note in found.notes:
            on_event(Note(note, "warning"))
    return records, located


@contextmanager
def _collected(faults: list[UserError]) -> Iterator[None]:
    try:
        yield
    except UserError as fault:
        faults.append(fault)


@contextmanager
def _phase(name: str, on_event: OnEvent, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Tell of a phase; call what it yields with the number of units done."""
    begun = time.perf_counter()
    on_event(PhaseStarted(name, total))
    yield lambda done: on_event(PhaseAdvanced(name, done))
    on_event(PhaseEnded(name, time.perf_counter() - begun))


def _first(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """A listener to (done, total) that passes on what is done."""
    return lambda done, _: advance(done)


def _encode(
    config: RunConfig, records: Mapping[str, Records], loaded: Loaded, on_event: OnEvent
) -> dict[str, Examples]:
    from dualoptim_cli.data import Encoder, Examples

    settings = config.data.model_dump(include={"template", "max_length", "long_rows", "stride"})
    encoder = Encoder(loaded.tokenizer, **settings)
    for note in encoder.notes:
        on_event(Note(note))
    return {name: Examples(found, encoder) for name, found in records.items()}


def _before(
    config: RunConfig, folder: RunFolder, examples: Mapping[str, Examples], loaded: Loaded, on_event: OnEvent
) -> Results:
    """The measurement of the model as it was; a run that goes on has it on disk."""
    from dualoptim_cli.evaluate.results import Results

    known = folder.read_metrics()
    if "before" in known:
        return Results.from_json(known["before"])
    before = _measure(config, examples, loaded, "Measuring before", on_event)
    folder.write_metrics({"before": before.to_json()})
    return before


def _measure(
    config: RunConfig, examples: Mapping[str, Examples], loaded: Loaded, name: str, on_event: OnEvent
) -> Results:
    from dualoptim_cli.evaluate.evaluator import measure

    return measure(
        loaded.model,
        examples,
        rows=config.eval.rows,
        seed=config.seed,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
        on_event=on_event,
        phase=name,
    )


def _optimizer_settings(config: RunConfig) -> dict[str, Any]:
    return config.optimizer.model_dump(exclude={"name", "lr", "max_grad_norm"})


def _save_model(loaded: Loaded, folder: Path) -> None:
    """Save the model as a whole or not at all, in a form that from_pretrained loads."""
    import shutil

    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    loaded.model.save_pretrained(aside)
    loaded.tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


@dataclass
class _Run:
    """The training part of a job, with what its steps share."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    examples: Mapping[str, Examples]
    loaded: Loaded
    on_event: OnEvent
    should_stop: Callable[[], bool]

    def train(self, *, resume: bool) -> int:
        """Train from the start, or from the newest checkpoint, to the end; return the number of steps."""
        from dualoptim_cli.optim import measure_conflict
        from dualoptim_cli.train import checkpoint, loop

        config, plan = self.config, self.plan
        schedule = self._schedule()
        tasks = self._tasks(schedule)
        optimizer = self._optimizer()
        saved = checkpoint.newest(self.folder.checkpoints) if resume else None
        if saved:
            checkpoint.check_identity(saved.identity, self._identity())
            checkpoint.restore(saved, self.loaded.model, optimizer)
            self.on_event(Note(f"Going on after step {saved.step}."))
        first = saved.step if saved else 0
        names = tuple(config.objectives)
        with self.folder.event_log(first) as log:

            def tell(event: Event) -> None:
                log(event)
                self.on_event(event)

            return loop.train(
                self.loaded.model,
                optimizer,
                tasks,
                schedule,
                loop.Settings(
                    steps=plan.steps,
                    lr=plan.lr,
                    micro_batch=plan.micro_batch,
                    warmup=config.schedule.warmup,
                    decay=config.schedule.decay,
                    max_grad_norm=config.optimizer.max_grad_norm,
                    mixed_precision=config.model.mixed_precision,
                    seed=config.seed,
                ),
                weights={name: part.weight for name, part in config.objectives.items()},
                first_step=first,
                on_event=tell,
                after_step=lambda step: self._after_step(step, optimizer),
                measure_conflict=lambda state: measure_conflict(state, *names[:2]) if len(names) > 1 else None,
            )

    def _schedule(self) -> Schedule:
        from dualoptim_cli.data import Schedule

        parts = self.config.objectives
        return Schedule(
            {name: len(self.examples[name]) for name in parts},
            {name: part.steps for name, part in parts.items()},
            batch_size=self.plan.batch_size,
            seed=self.config.seed,
            mode=self.config.schedule.mode,
        )

    def _tasks(self, schedule: Schedule) -> dict[str, Task]:
        """The objectives bound to their rows, with the reference likelihoods they need computed once."""
        from dualoptim_cli.data import draw_refusal, load_refusals
        from dualoptim_cli.objectives.forward import build_task, train_only_asked
        from dualoptim_cli.objectives.reference import Frozen

        refusals, seed = load_refusals(self.config.data.refusals), self.config.seed
        self._read_ahead(schedule)

        def refusal(row: int) -> str:
            return draw_refusal(refusals, seed=seed, row=row)

        frozen, model = Frozen(), self.loaded.model
        tasks = {
            name: build_task(
                name, part.loss, self.examples[name], options=part.options, refusal=refusal, frozen=frozen, seed=seed
            )
            for name, part in self.config.objectives.items()
        }
        train_only_asked(model, tasks.values())
        for name, task in tasks.items():
            if task.dump():
                rows = schedule.rows_used(name, self.plan.steps)
                with _phase(f"Reference of {name}", self.on_event, len(rows)) as advance:
                    task.prepare(model, rows, on_progress=_first(advance))
        return tasks

    def _read_ahead(self, schedule: Schedule) -> None:
        """Tokenise what the run will draw, so that a row that cannot be used is told before training, not in it."""
        for name in self.config.objectives:
            self.examples[name].answer_tokens(sorted(schedule.rows_used(name, self.plan.steps)))
            for note in self.examples[name].notes:
                self.on_event(Note(note, "warning"))

    def _optimizer(self) -> Optimizer:
        from dualoptim_cli.optim import build_optimizer, settings_of

        config, lr = self.config, self.plan.lr
        known = settings_of(config.optimizer.name)
        of_run: dict[str, Any] = {"seed": config.seed, "objectives": tuple(config.objectives)}
        ratios = {name: part.lr_ratio for name, part in config.objectives.items() if part.lr_ratio != 1.0}
        return build_optimizer(
            config.optimizer.name,
            [(name, p) for name, p in self.loaded.model.named_parameters() if p.requires_grad],
            lr=lr,
            objective_lr={name: lr * ratio for name, ratio in ratios.items()},
            **_optimizer_settings(config),
            **{key: value for key, value in of_run.items() if key in known},
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: its settings and the sizes of what it reads."""
        asked = {".".join(keys): value for keys, value in leaves(self.config.model_dump(mode="json"))}
        rows = {f"rows of {name}": len(found) for name, found in self.examples.items()}
        harmless = ("checkpoint.", "eval.", "request_id")
        return {key: value for key, value in (asked | rows).items() if not key.startswith(harmless)}

    def _after_step(self, step: int, optimizer: Optimizer) -> bool:
        """Save when it is time to; on a wish to stop, save and leave with exit code 130."""
        stop = self.should_stop()
        every = self.plan.checkpoint_every
        if stop or (every and step % every == 0 and step < self.plan.steps):
            self._save(step, optimizer)
        if stop:
            raise UserError(
                f"Interrupted after step {step} of {self.plan.steps}; everything is saved.",
                f"Go on with: dualopt unlearn --out {self.folder.path} --resume",
                ExitCode.INTERRUPTED,
            )
        return True

    def _save(self, step: int, optimizer: Optimizer) -> None:
        from dualoptim_cli.train import checkpoint

        begun = time.perf_counter()
        keep = self.config.checkpoint.keep
        root, model = self.folder.checkpoints, self.loaded.model
        path = checkpoint.save(root, step, model, optimizer, self._identity(), keep=keep)
        size = sum(file.stat().st_size for file in path.iterdir())
        self.on_event(CheckpointSaved(step, str(path), size, time.perf_counter() - begun))
