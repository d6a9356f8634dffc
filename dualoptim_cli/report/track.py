"""The numbers of a run as trackers show them: TensorBoard, MLflow, Weights & Biases, trackio.

Numbers alone: no setting, no path, no text of a row. Everything stays on this machine unless the tracker's own variable
(`WANDB_MODE`, `MLFLOW_TRACKING_URI`) says otherwise. Nothing is imported before a tracker is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualoptim_cli.distributed import PROCESSES
from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.events import Event, Note, OnEvent, Probed, StepDone, TrainingStarted

Numbers = dict[str, float]


@dataclass(frozen=True)
class Tracker:
    """A tracker: the package it needs, what its environment is unless the user's says otherwise, and how it is built.

    `build` takes the name of the run, the folder for its files, and the last step that an earlier session reached.
    """

    package: str
    environment: Callable[[Path], Mapping[str, str]]
    build: Callable[[str, Path, int], Any]


def _tensorboard(name: str, folder: Path, step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # Steps after the checkpoint that a run goes on from are done again: the earlier ones are not to be shown beside.
    return TensorBoardTracker(name, str(folder), purge_step=step + 1 if step else None)


def _mlflow(name: str, folder: Path, step: int) -> Any:  # noqa: ARG001  each session is a run of its own
    from accelerate.tracking import MLflowTracker

    return MLflowTracker("dualopt", run_name=name)


def _wandb(name: str, folder: Path, step: int) -> Any:  # noqa: ARG001
    from accelerate.tracking import WandBTracker

    return WandBTracker("dualopt", name=name, dir=str(folder))


def _trackio(name: str, folder: Path, step: int) -> Any:  # noqa: ARG001
    from accelerate.tracking import TrackioTracker

    return TrackioTracker("dualopt", name=name)


def _nothing(_: Path) -> Mapping[str, str]:
    return {}


def _of_mlflow(folder: Path) -> Mapping[str, str]:
    # Files are in maintenance there, and refused unless allowed; they need no database.
    return {"MLFLOW_TRACKING_URI": folder.resolve().as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


def _of_wandb(_: Path) -> Mapping[str, str]:
    # By itself it would note the command, the code and what the screen shows; the screen can show rows.
    off = {"WANDB_CONSOLE": "off", "WANDB_SILENT": "true", "WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true"}
    return {"WANDB_MODE": "offline", "WANDB_X_DISABLE_META": "true", "WANDB_X_DISABLE_STATS": "true", **off}


def _of_trackio(folder: Path) -> Mapping[str, str]:
    return {"TRACKIO_DIR": str(folder.resolve())}


TRACKERS = {
    "tensorboard": Tracker("tensorboard", _nothing, _tensorboard),
    "mlflow": Tracker("mlflow", _of_mlflow, _mlflow),
    "wandb": Tracker("wandb", _of_wandb, _wandb),
    "trackio": Tracker("trackio", _of_trackio, _trackio),
}


def check(name: str) -> None:
    """Raise UserError for a tracker that is not known, or whose package is not installed."""
    if name not in TRACKERS:
        raise UserError(f'--track: "{name}" is no tracker.', did_you_mean(name, list(TRACKERS)))
    package = TRACKERS[name].package
    if find_spec(package) is None:
        raise UserError(f"--track {name} needs the package {package}.", f"pip install {package}")


@contextmanager
def track(tracker: str, name: str, folder: Path, on_event: OnEvent) -> Iterator[OnEvent]:
    """Pass events on to `on_event`, and their numbers to the tracker, as those of the run `name`.

    A tracker that cannot write is left, with a warning: a run is not ended for its curves.
    """
    kind, open_trackers = TRACKERS[tracker], list[Any]()

    def listen(event: Event) -> None:
        on_event(event)
        try:
            if isinstance(event, TrainingStarted) and PROCESSES.is_main and not open_trackers:
                folder.mkdir(parents=True, exist_ok=True)
                for key, value in kind.environment(folder).items():
                    os.environ.setdefault(key, value)
                built = kind.build(name, folder, event.first_step)
                built.start()
                open_trackers.append(built)
            elif open_trackers and isinstance(event, StepDone | Probed):
                open_trackers[0].log(numbers(event), step=event.step)
        except OSError as error:
            open_trackers.clear()
            on_event(Note(f"{tracker} cannot write ({error}): the run goes on without it.", "warning"))

    try:
        yield listen
    finally:
        for each in open_trackers:
            each.finish()


def numbers(event: StepDone | Probed) -> Numbers:
    """The numbers of a step, or of the probe before the first, each by its name."""
    values: Numbers = {}
    for name, metrics in (event.probe or {}).items():
        values |= {f"probe/{name}.{metric}": value for metric, value in metrics.items()}
    if isinstance(event, Probed):
        return values
    values |= {f"loss/{name}": value for name, value in event.losses.items()}
    values |= {f"lr/{name}": value for name, value in event.lrs.items()}
    values |= {"step/grad_norm": event.grad_norm, "step/tokens": event.tokens, "step/seconds": event.seconds}
    values |= {"step/memory": event.memory, "step/micro_batch": event.micro_batch}
    if event.conflict is not None:
        values["step/conflict"] = event.conflict
    return values
