"""A sweep from its runs to their ends: what is finished is kept, the rest is done, and what failed is listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dualoptim_cli import text
from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.record import likeness
from dualoptim_cli.report.groups import Group
from dualoptim_cli.sweep.grid import Run
from dualoptim_cli.sweep.pool import Job, Pool
from dualoptim_cli.sweep.state import Finished, Place, finished, last_words, prepare

KINDS = {
    ExitCode.BUG: "a bug",
    ExitCode.USAGE: "settings or data",
    ExitCode.GATE: "a gate",
    ExitCode.RESOURCES: "memory, disk or a lock",
    ExitCode.INTEGRITY: "something was changed",
    ExitCode.TRAINING: "training stopped itself",
    ExitCode.INTERRUPTED: "interrupted",
}
WORST_FIRST = (
    *(ExitCode.INTERRUPTED, ExitCode.BUG, ExitCode.INTEGRITY, ExitCode.TRAINING, ExitCode.RESOURCES, ExitCode.USAGE),
    *(ExitCode.GATE, ExitCode.OK),
)


@dataclass(frozen=True)
class Failed:
    """A run without a result: the exit code of its process, and what it said last."""

    run: Run
    code: int
    words: str

    def __str__(self) -> str:
        kind = KINDS.get(ExitCode(self.code), "unknown") if self.code in list(ExitCode) else f"exit code {self.code}"
        return f"{self.run.name}: {kind}. {self.words}".rstrip()


@dataclass(frozen=True)
class Result:
    """All that a sweep has to show: its runs with a result, those without, and those that were never begun."""

    runs: Sequence[Run]
    finished: Sequence[Finished]
    failed: Sequence[Failed]

    @property
    def code(self) -> int:
        """The exit code of the sweep: the worst of its runs'."""
        codes = {each.code for each in self.finished} | {each.code for each in self.failed}
        if len(self.finished) + len(self.failed) < len(self.runs):
            codes.add(ExitCode.INTERRUPTED)
        return next((code for code in WORST_FIRST if code in codes), max(codes, default=0))

    @property
    def worst(self) -> ExitCode:
        """The exit code as such; that of a process that no one knows is a bug."""
        return ExitCode(self.code) if self.code in list(ExitCode) else ExitCode.BUG

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the sweep before its runs were done."""
        return self.code == ExitCode.INTERRUPTED

    @property
    def groups(self) -> list[Group]:
        """The runs with a result by group, in the order of the sweep, each group with its seeds in order."""
        planned: dict[str, list[Run]] = {}
        for run in self.runs:
            planned.setdefault(run.group, []).append(run)
        done = {each.run.name: likeness.Run(each.path, each.record) for each in self.finished}
        groups = []
        for name, runs in planned.items():
            of_seed = {run.seed: done[run.name] for run in sorted(runs, key=_seed) if run.name in done}
            groups.append(Group(name, of_seed, len(runs)))
        return groups


def look(runs: Sequence[Run], folder: Path) -> list[Finished]:
    """The runs that are finished already. Raises UserError with every fault of what is there."""
    faults: list[UserError] = []
    there = []
    for run in runs:
        try:
            state = finished(run, Place.of(folder, run.name))
        except UserError as fault:
            faults.append(fault)
            continue
        if state:
            there.append(state)
    raise_all(faults)
    return there


def run_all(
    runs: Sequence[Run], folder: Path, pool: Pool, say: Callable[[str], None], *, track: str | None = None
) -> Result:
    """Do what is not finished of these runs, tracked where a tracker is named; return what there is of them all."""
    done = look(runs, folder)
    if done:
        say(f"{len(done)} of {len(runs)} runs are finished already.")
    there = {each.run.name for each in done}
    left = {run.name: run for run in runs if run.name not in there}
    jobs = []
    for run in left.values():
        place = Place.of(folder, run.name)
        arguments = prepare(run, place)
        if track:
            arguments += ["--track", track, "--track-in", str(folder / "tracking")]
        jobs.append(Job(run.name, arguments, place.log))
    failed = []
    for number, ended in enumerate(pool.run(jobs), start=len(done) + 1):
        run = left[ended.name]
        state = None
        with suppress(UserError):  # a run that its own process could not go on with: that one says why
            state = finished(run, Place.of(folder, run.name))
        if state:
            done.append(state)
            end = state.record.verdict.text if state.record.verdict else "finished"
        else:
            failed.append(Failed(run, ended.code or int(ExitCode.BUG), last_words(Place.of(folder, run.name))))
            end = str(failed[-1]).removeprefix(f"{run.name}: ")
        say(f"[{number}/{len(runs)}] {run.name} ({text.took(ended.seconds)}): {end}")
    order = {run.name: place for place, run in enumerate(runs)}
    return Result(runs, sorted(done, key=lambda each: order[each.run.name]), failed)


def _seed(run: Run) -> int:
    return run.seed
