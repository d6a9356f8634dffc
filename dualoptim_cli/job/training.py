"""The training part of a job: schedule, objectives, optimizer and checkpoints around the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import CheckpointSaved, Event, Note, OnEvent
from dualoptim_cli.job import references
from dualoptim_cli.job.identity import identity_of, name_rows, texts_digest, tokens_digest
from dualoptim_cli.plan import Plan
from dualoptim_cli.plan.turns import make_schedule

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dualoptim_cli.data import Examples
    from dualoptim_cli.model.load import Loaded
    from dualoptim_cli.objectives.forward import Task
    from dualoptim_cli.objectives.reference import Frozen
    from dualoptim_cli.optim import Conflict
    from dualoptim_cli.record.folder import RunFolder
    from dualoptim_cli.train.collapse import Watch
    from dualoptim_cli.train.settings import Settings
    from dualoptim_cli.train.standing import Collapsed, Standing, Stopped


def optimizer_settings(config: RunConfig) -> dict[str, Any]:
    return config.optimizer.model_dump(exclude={"name", "lr", "max_grad_norm"})


@dataclass(frozen=True)
class Trained:
    """How training ended: its last step, and what the run must end with once its result is written, if anything."""

    steps: int
    stopped: UserError | None = None


@dataclass
class Training:
    """The training part of a job, with what its steps share.

    `origin` is the digest of the model that the run began with: what was found out about that model is of no other.
    """

    config: RunConfig
    plan: Plan
    folder: RunFolder
    examples: Mapping[str, Examples]
    loaded: Loaded
    on_event: OnEvent
    should_stop: Callable[[], bool]
    origin: str = ""

    def run(self, *, resume: bool) -> Trained:
        """Train from the start, or from the newest checkpoint, to the end.

        Raises UserError: exit 130 when asked to stop, 4 when memory or disk do not suffice, 5 when what was saved is
        damaged or of another run, 6 when training stopped itself. What is worth saving is saved before.
        """
        from dualoptim_cli.train import checkpoint
        from dualoptim_cli.train.standing import Standing

        self._schedule = make_schedule(self.config, self.examples, batch_size=self.plan.batch_size)
        self._identity = self._make_identity()
        search = checkpoint.newest(self.folder.checkpoints) if resume else checkpoint.Search(None)
        saved = search.checkpoint
        if saved:
            checkpoint.check_identity(saved.identity, self._identity)
        tasks = self._make_tasks()
        self._optimizer = self._make_optimizer()
        self._check_disk()
        if saved:
            checkpoint.restore(saved, self.loaded.model, self._optimizer)
            for fault in search.passed_over:
                self.on_event(Note(f"{fault} The run goes back to the one before.", "warning"))
            self.on_event(Note(f"Going on after step {saved.step}."))
        best = checkpoint.newest_sound(self.folder.checkpoints) if saved else None
        self._best = best.folder if best else None
        self._saved = saved.step if saved else 0
        return self._train(tasks, saved.standing if saved else Standing())

    def _train(self, tasks: Mapping[str, Task], start: Standing) -> Trained:
        from dualoptim_cli.record import history
        from dualoptim_cli.train import loop
        from dualoptim_cli.train.standing import Collapsed, Stopped

        config, settings = self.config, self._settings()
        self._history = history.History(
            self.folder.path / history.NAME, steps=settings.steps, every=settings.conflict_every
        )
        self._history.cut(start.step)
        with self.folder.event_log(start.step) as log:
            self._log = log

            def tell(event: Event) -> None:
                log(event)
                self.on_event(event)

            try:
                done = loop.train(
                    self.loaded.model,
                    self._optimizer,
                    tasks,
                    self._schedule,
                    settings,
                    weights={name: part.weight for name, part in config.objectives.items()},
                    watches=self._watches(),
                    start=start,
                    on_event=tell,
                    after_step=self._after_step,
                    measure_conflict=self._observe,
                    name_rows=name_rows(self.examples),
                )
            except Collapsed as fault:
                if config.schedule.on_collapse == "rollback":
                    return self._roll_back(fault)
                raise self._with_way_out(fault) from fault
            except Stopped as fault:
                if fault.whole and fault.standing.step > self._saved:
                    self._save(fault.standing)
                raise self._with_way_out(fault) from fault
        return Trained(done.step)

    def _observe(self, optimizer: Optimizer, step: int) -> Conflict | None:
        """The conflict after the step that was just taken; now and then with all else that the state tells."""
        from dualoptim_cli.optim import measure_conflict, summarize_state
        from dualoptim_cli.record.history import SAMPLE

        names = tuple(self._schedule.turns)[:2]
        if not self._history.due(step):
            return measure_conflict(optimizer, *names) if len(names) > 1 else None
        found = summarize_state(optimizer, *names, sample=SAMPLE)
        self._history.add(step, found)
        return found.conflict()

    def _settings(self) -> Settings:
        from dualoptim_cli.train.settings import Settings

        schedule, plan = self.config.schedule, self.plan
        return Settings(
            steps=plan.steps,
            lr=plan.lr,
            micro_batch=plan.micro_batch,
            warmup=schedule.warmup,
            decay=schedule.decay,
            max_grad_norm=self.config.optimizer.max_grad_norm,
            mixed_precision=self.config.model.mixed_precision,
            seed=self.config.seed,
            skips=int(schedule.on_nonfinite.removeprefix("skip")) if schedule.on_nonfinite != "stop" else 0,
        )

    def _watches(self) -> dict[str, Watch]:
        """The objectives whose collapse would end the training: those that keep rows, where their loss has a scale."""
        from dualoptim_cli.objectives import RETAIN, find_objective
        from dualoptim_cli.train.collapse import level, watch

        if self.config.schedule.on_collapse == "ignore":
            return {}
        vocabulary = int(self.loaded.model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
        watches = {}
        for name, part in self.config.objectives.items():
            objective = find_objective(name, part.loss)
            if objective.scale:
                turns = part.steps if self.config.schedule.mode == "alternate" else 1
                lost = level(objective.scale, {**objective.options, **part.options}, vocabulary)
                watches[name] = watch(lost, turns)
            elif part.loss in RETAIN and part.loss != "none":
                self.on_event(Note(f"A collapse of {name} would go unseen: {part.loss} has no scale to tell it by."))
        return watches

    def _make_identity(self) -> dict[str, Any]:
        """What this run is, by its settings and by what it reads."""
        from dualoptim_cli.data import load_refusals

        self._rows = {name: sorted(self._schedule.rows_used(name, self.plan.steps)) for name in self._schedule.turns}
        digests = {f"data of {name}": tokens_digest(self.examples[name], rows) for name, rows in self._rows.items()}
        digests["refusals"] = texts_digest(load_refusals(self.config.data.refusals))
        dtype = str(self.loaded.dtype).removeprefix("torch.")
        return identity_of(self.config, self.plan, dtype, self.examples, digests)

    def _make_tasks(self) -> dict[str, Task]:
        """The objectives bound to their rows, with what they need of the model before its first step."""
        from dualoptim_cli.data import load_refusals
        from dualoptim_cli.objectives.forward import build_task, train_only_asked

        path, seed = self.config.data.refusals, self.config.seed
        refusals = load_refusals(path) if path else None
        frozen, model = _frozen(self.config), self.loaded.model
        tasks = {
            name: build_task(
                name, part.loss, self.examples[name], options=part.options, refusals=refusals, frozen=frozen, seed=seed
            )
            for name, part in self.config.objectives.items()
            if name in self._rows
        }
        train_only_asked(model, tasks.values())
        depends_on = self._identity | {"model": self.origin}
        references.prepare(tasks, self._rows, model, self.folder.checkpoints, depends_on, self.on_event)
        return tasks

    def _make_optimizer(self) -> Optimizer:
        from dualoptim_cli.optim import build_optimizer, find_optimizer

        config, lr = self.config, self.plan.lr
        entry = find_optimizer(config.optimizer.name)
        of_run: dict[str, Any] = {"seed": config.seed, "objectives": tuple(self._schedule.turns)}
        ratios = {name: part.lr_ratio for name, part in config.objectives.items() if part.lr_ratio != 1.0}
        return build_optimizer(
            config.optimizer.name,
            [(name, p) for name, p in self.loaded.model.named_parameters() if p.requires_grad],
            lr=lr,
            objective_lr={name: lr * ratio for name, ratio in ratios.items()},
            **optimizer_settings(config),
            **{key: value for key, value in of_run.items() if key in entry.settings},
        )

    def _check_disk(self) -> None:
        """Refuse a run whose checkpoints and model the disk cannot hold, before its first step."""
        from dualoptim_cli.files import check_free
        from dualoptim_cli.plan.blueprint import state_bytes
        from dualoptim_cli.plan.disk import checkpoints_at_once
        from dualoptim_cli.plan.needs import explain
        from dualoptim_cli.text import size
        from dualoptim_cli.train.checkpoint import bytes_needed
        from dualoptim_cli.train.pace import Pace

        config, model = self.config, self.loaded.model
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        whole = trained if config.lora else sum(p.numel() * p.element_size() for p in model.parameters())
        state = state_bytes(config, [(name, p) for name, p in model.named_parameters() if p.requires_grad])
        count = checkpoints_at_once(config)
        self._pace = Pace(config.checkpoint.every, expected=trained + state)
        there = sum(path.stat().st_size for path in self.folder.checkpoints.rglob("*.safetensors"))
        needed = bytes_needed(trained, state, checkpoints=count, model=whole) - there
        what = f"{count} checkpoints of {size(trained + state)} at one time, and {size(whole)} of weights at the end"
        hint = "Fewer checkpoints need less: --set checkpoint.keep=1."
        check_free(needed, self.folder.path, what, hint)
        self._needs = explain(self.plan.needs) if self.plan.needs else ""

    def _after_step(self, standing: Standing) -> bool:
        """Save when it is time to, and at the end what is to be kept; on a wish to stop, save and leave with 130."""
        stop = self.should_stop()
        last = standing.step == self.plan.steps and self.config.checkpoint.keep_at_end
        if ((stop or last) and standing.step > self._saved) or self._pace.due(standing.step):
            self._save(standing)
        if stop:
            raise UserError(
                f"Interrupted after step {standing.step} of {self.plan.steps}; everything is saved.",
                f"Go on with: {self.folder.resume_command}",
                ExitCode.INTERRUPTED,
            )
        return True

    def _save(self, standing: Standing) -> None:
        from dualoptim_cli.train import checkpoint

        begun = time.perf_counter()
        self._log.flush()
        path = checkpoint.save(
            self.folder.checkpoints,
            standing,
            self.loaded.model,
            self._optimizer,
            self._identity,
            keep=self.config.checkpoint.keep,
            spare={self._best} if self._best and self.config.schedule.on_collapse == "rollback" else set(),
        )
        self._saved = standing.step
        self._best = path if standing.sound else self._best
        size = sum(file.stat().st_size for file in path.iterdir())
        seconds = time.perf_counter() - begun
        self._pace.saved(seconds)
        self.on_event(CheckpointSaved(standing.step, str(path), size, seconds))

    def _roll_back(self, fault: Collapsed) -> Trained:
        """Put back the newest checkpoint from before the collapse: the run ends with what it had reached there."""
        from dualoptim_cli.train import checkpoint

        best = checkpoint.newest_sound(self.folder.checkpoints)
        if best is None:
            message = f"{fault.message} There is no checkpoint from before to go back to."
            raise UserError(message, fault.hint, fault.code) from fault
        checkpoint.restore(best, self.loaded.model, self._optimizer)
        message = f"{fault.message} The run went back to its checkpoint of step {best.step} and ended there."
        self.on_event(Note(message, "warning"))
        return Trained(best.step, UserError(message, fault.hint, fault.code))

    def _with_way_out(self, fault: Stopped) -> UserError:
        """The fault, with what the run takes where that was too much, where the last checkpoint is, and what then."""
        from dualoptim_cli.train.standing import Collapsed

        message, hint, more = fault.message, fault.hint, ""
        if fault.code == ExitCode.RESOURCES:
            message += f" {self._needs}"
        elif isinstance(fault, Collapsed):
            more = " --on-collapse rollback"
        else:
            more = " --on-nonfinite 'skip 3'"
        if not self._saved:
            return UserError(f"{message} No checkpoint was saved before.", hint, fault.code)
        message += f" The checkpoint of step {self._saved} is kept."
        if isinstance(fault, Collapsed) and not (self._best and self._best.is_dir()):
            message += " By then the collapse had begun."  # so that going on from it would only end here again
            return UserError(message, f"{hint} With --on-collapse rollback, too, a run can go back.", fault.code)
        return UserError(message, f"{hint} To go on from it: {self.folder.resume_command}{more}", fault.code)


def _frozen(config: RunConfig) -> Frozen:
    """The model before unlearning, for objectives that compare with the whole of it."""
    import torch

    from dualoptim_cli.objectives.reference import Frozen

    kinds = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    device = None if config.model.frozen_device == "auto" else config.model.frozen_device
    return Frozen(dtype=kinds[config.model.frozen_dtype], device=device)
