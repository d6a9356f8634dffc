"""The training of a run: its parts are made ready, then the loop runs, with log, checkpoints and ways out around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dualoptim_cli.distributed import PROCESSES
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Event, Note, OnEvent
from dualoptim_cli.job.identity import dtype_of, identity_of, name_rows
from dualoptim_cli.job.planning import Planned
from dualoptim_cli.job.probing import build_probe
from dualoptim_cli.job.saving import Checkpoints
from dualoptim_cli.job.shared import Shared
from dualoptim_cli.job.tasks import build_tasks, build_watches
from dualoptim_cli.model.load import Loaded
from dualoptim_cli.objectives.forward import Task
from dualoptim_cli.optim import Conflict, build_optimizer, find_optimizer, measure_conflict, summarize_state
from dualoptim_cli.plan.needs import explain
from dualoptim_cli.record import history
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.train import checkpoint, loop
from dualoptim_cli.train.ending import Rule
from dualoptim_cli.train.pace import Pace
from dualoptim_cli.train.settings import TrainingSettings
from dualoptim_cli.train.standing import Collapsed, Standing, Stopped


@dataclass(frozen=True)
class Trained:
    """How training ended: its last step, and the error that the run ends with once its result is written, if any."""

    steps: int
    stopped: UserError | None = None


@dataclass(frozen=True)
class Training:
    """A training that is ready to run, from `start` on. `should_stop` is asked after every step."""

    planned: Planned
    loaded: Loaded
    folder: RunFolder
    tasks: Mapping[str, Task]
    optimizer: Optimizer
    checkpoints: Checkpoints
    start: Standing
    rule: Rule | None
    on_event: OnEvent
    should_stop: Callable[[], bool]
    key: bytes
    log_code: str | None

    @classmethod
    def prepare(
        cls,
        planned: Planned,
        loaded: Loaded,
        folder: RunFolder,
        *,
        rule: Rule | None = None,
        shared: Shared,
        origin: str,
        key: bytes,
        search: checkpoint.Search,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> Training:
        """Bind the objectives, build the optimizer, and restore the checkpoint that the run goes on from, if any.

        `origin` is the digest of the model that the run began with: references computed for it are of no other. Those
        that another run has computed are in `shared`.
        With `key`, that of the run, checkpoints and log are held together.
        """
        config = planned.brief.config
        identity = identity_of(planned, dtype_of(loaded), key)
        saved = search.checkpoint
        # References are computed before a checkpoint is restored: they are of the model as the run began with it.
        tasks = build_tasks(planned, loaded.model, folder.checkpoints, {**identity, "model": origin}, shared, on_event)
        optimizer = _build_optimizer(planned, loaded.model)
        if saved:
            checkpoint.restore(saved, loaded.model, optimizer)
            for fault in search.passed_over:
                on_event(Note(f"{fault} The run goes back to the one before.", "warning"))
            on_event(Note(f"Going on after step {saved.step}."))
        sound = checkpoint.newest_sound(folder.checkpoints) if saved else None
        best = checkpoint.folder_of(folder.checkpoints, saved.standing.best_step if saved else 0)
        checkpoints = Checkpoints(
            folder.checkpoints,
            loaded.model,
            optimizer,
            identity,
            keep=config.checkpoint.keep,
            spare_sound=config.schedule.on_collapse == "rollback",
            pace=Pace(config.checkpoint.every, expected=planned.needs.disk.checkpoint),
            on_event=on_event,
            step=saved.step if saved else 0,
            sound=sound.folder if sound else None,
            best=best if saved and saved.standing.best_step and best.is_dir() else None,
        )
        start = saved.standing if saved else Standing()
        log_code = str(saved.seals.get(folder.events.name)) if saved else None
        return cls(
            planned, loaded, folder, tasks, optimizer, checkpoints, start, rule, on_event, should_stop, key, log_code
        )

    def run(self) -> Trained:
        """Train to the end.

        Raises UserError: exit 130 when asked to stop, 4 when memory or disk do not suffice, 6 when training stopped
        itself. What is worth saving is saved before.
        """
        config, plan = self.planned.brief.config, self.planned.plan
        settings = _loop_settings(self.planned)
        compared = tuple(self.planned.schedule.turns)[:2]
        snapshots = history.History(
            self.folder.path / history.NAME, steps=settings.steps, every=settings.conflict_every
        )
        snapshots.cut(self.start.step)
        spares_best = self.rule is not None and config.checkpoint.every != 0
        embeddings: Any = self.loaded.model.get_input_embeddings()
        watches = build_watches(self.planned, int(embeddings.weight.shape[0]), self.on_event)
        with self.folder.event_log(self.start.step, self.key, self.log_code) as log:

            def on_event(event: Event) -> None:
                log(event)
                self.on_event(event)

            def save(standing: Standing) -> None:
                log.flush()  # no checkpoint without the steps that it has behind it
                self.checkpoints.save(standing, {self.folder.events.name: log.code})

            def after_step(standing: Standing) -> bool:
                stop = PROCESSES.any(self.should_stop())
                steps = standing.last or plan.steps
                ended = standing.step == steps
                if ended and not snapshots.due(standing.step):
                    observe(self.optimizer, standing.step, due=True)
                worth = (ended and config.checkpoint.keep_at_end) or (
                    spares_best and standing.best_step == standing.step
                )
                if ((stop or worth) and standing.step > self.checkpoints.step) or self.checkpoints.due(standing.step):
                    save(standing)
                if stop:
                    raise UserError(
                        f"Interrupted after step {standing.step} of {steps}; everything is saved.",
                        f"Go on with: {self.folder.resume_command}",
                        ExitCode.INTERRUPTED,
                    )
                return True

            def observe(optimizer: Optimizer, step: int, due: bool = False) -> Conflict | None:
                if not (due or snapshots.due(step)):
                    return measure_conflict(optimizer, *compared) if len(compared) > 1 else None
                summary = summarize_state(optimizer, *compared, sample=history.SAMPLE)
                snapshots.add(step, summary)
                return summary.conflict()

            try:
                end = loop.train(
                    self.loaded.model,
                    self.optimizer,
                    self.tasks,
                    self.planned.schedule,
                    settings,
                    weights={name: part.weight for name, part in config.objectives.items()},
                    watches=watches,
                    start=self.start,
                    on_event=on_event,
                    after_step=after_step,
                    measure_conflict=observe,
                    measure_probe=build_probe(self.planned, self.loaded.model),
                    name_rows=name_rows(self.planned.examples),
                    rule=self.rule,
                )
            except Collapsed as fault:
                if config.schedule.on_collapse == "rollback":
                    return self._roll_back(fault)
                raise self._with_way_out(fault) from fault
            except Stopped as fault:
                if fault.whole and fault.standing.step > self.checkpoints.step:
                    save(fault.standing)
                raise self._with_way_out(fault) from fault
        if self.rule and end.best_step not in (0, end.step) and end.hits == 0 and self.checkpoints.restore_best():
            text = f"The gates held best after step {end.best_step} of {end.step}: that is the model which is kept."
            self.on_event(Note(text, "warning"))
            return Trained(end.best_step)
        return Trained(end.step)

    def _roll_back(self, fault: Collapsed) -> Trained:
        """Put back the newest checkpoint from before the collapse: the run ends with what it had reached there."""
        step = self.checkpoints.roll_back()
        if step is None:
            message = f"{fault.message} There is no checkpoint from before to go back to."
            raise UserError(message, fault.hint, fault.code) from fault
        message = f"{fault.message} The run went back to its checkpoint of step {step} and ended there."
        self.on_event(Note(message, "warning"))
        return Trained(step, UserError(message, fault.hint, fault.code))

    def _with_way_out(self, fault: Stopped) -> UserError:
        """The fault with what the run takes, where that was too much, which checkpoint is left, and how to go on."""
        message, hint = fault.message, fault.hint
        if fault.code == ExitCode.RESOURCES:
            message += f" {explain(self.planned.needs)}"
        if not self.checkpoints.step:
            return UserError(f"{message} No checkpoint was saved before.", hint, fault.code)
        message += f" The checkpoint of step {self.checkpoints.step} is kept."
        more = ""
        if isinstance(fault, Collapsed):
            if not (self.checkpoints.sound and self.checkpoints.sound.is_dir()):
                message += " By then the collapse had begun."  # so that going on from it would only end here again
                return UserError(message, f"{hint} With --on-collapse rollback, too, a run can go back.", fault.code)
            more = " --on-collapse rollback"
        elif fault.code != ExitCode.RESOURCES:
            more = " --on-nonfinite 'skip 3'"
        return UserError(message, f"{hint} To go on from it: {self.folder.resume_command}{more}", fault.code)


def _build_optimizer(planned: Planned, model: nn.Module) -> Optimizer:
    config, lr = planned.brief.config, planned.plan.lr
    settings = config.optimizer.own
    of_run: dict[str, Any] = {"seed": config.seed, "objectives": tuple(planned.schedule.turns)}
    entry = find_optimizer(config.optimizer.name)
    settings |= {key: value for key, value in of_run.items() if key in entry.settings}
    return build_optimizer(
        config.optimizer.name,
        [(name, p) for name, p in model.named_parameters() if p.requires_grad],
        lr=lr,
        objective_lr={name: lr * part.lr_ratio for name, part in config.objectives.items() if part.lr_ratio != 1.0},
        **settings,
    )


def _loop_settings(planned: Planned) -> TrainingSettings:
    config, plan = planned.brief.config, planned.plan
    allowed = config.schedule.on_nonfinite
    return TrainingSettings(
        steps=plan.steps,
        lr=plan.lr,
        micro_batch=plan.micro_batch,
        warmup=config.schedule.warmup,
        decay=config.schedule.decay,
        max_grad_norm=config.optimizer.max_grad_norm,
        mixed_precision=config.model.mixed_precision,
        probe_every=config.eval.every or 0,
        seed=config.seed,
        skips=0 if allowed == "stop" else int(allowed.removeprefix("skip")),
    )
