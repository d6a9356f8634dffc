"""From the description of a sweep to its runs: every variant × every varied setting × every seed.

A group is what a sweep compares: the runs that differ in nothing but their seed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dualoptim_cli.config import OptimizerConfig, RunConfig
from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.recipes import Override, leaves, recipe_folder, resolve, shipped_recipes

SettingValues = Mapping[str, Any]
"""Dotted key → value."""
KEYS = ("recipe", "settings", "variants", "vary", "seeds", "tune", "tune_seeds", "select")
LONGEST_NAME = 120  # characters of a run's folder; file systems take 255 bytes, and suffixes are added


@dataclass(frozen=True)
class Sweep:
    """What a sweep is to run.

    `settings` hold for every run, unless a variant has its own. `variants` are named settings that go together, `vary`
    settings with the values that each of them takes; the grid is their product, once for each seed. `flags` are
    settings of the command line, which nothing else may set.

    `tune` are settings that each group chooses for itself before that, with the runs of `tune_seeds`, by what the
    score `select` is at equal forgetting; a variant may have a list of its own in `tune_of`.
    """

    recipe: str | None = None
    settings: Sequence[Override] = ()
    variants: Mapping[str, SettingValues] = field(default_factory=dict)
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_of: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    tune_seeds: Sequence[int] = (0,)
    select: str | None = None
    flags: Sequence[Override] = ()

    def tuned(self, variant: str) -> dict[str, Sequence[Any]]:
        """What the groups of a variant choose for themselves."""
        lists = {**self.tune, **self.tune_of.get(variant, {})}
        return {key: values for key, values in lists.items() if values is not None}


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its folder's name, what it varies by, its seed, and its checked config.

    A run of the choice has a candidate for its group, and `of_group` names the group that chooses.
    `left_out` are settings for all runs that this run's optimizer does not have.
    """

    name: str
    group: str
    seed: int
    varied: SettingValues
    config: RunConfig
    left_out: tuple[str, ...] = ()
    of_group: str = ""
    tuned: SettingValues = field(default_factory=dict)


def find_sweep(name: str) -> Path:
    """The file of a sweep: a path, or the name of a shipped one."""
    shipped = {path.stem: path for path in sorted((recipe_folder() / "sweeps").glob("*.yaml"))}
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"}:
        return path
    if name not in shipped:
        raise UserError(f'There is no sweep "{name}".', did_you_mean(name, list(shipped)))
    return shipped[name]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises UserError with every fault of its form at once."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not a sweep: it cannot be parsed as YAML.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sweep.", f"Its keys are: {', '.join(KEYS)}.")
    faults = [
        UserError(f"{path}: {key} is no key of a sweep.", did_you_mean(str(key), KEYS))
        for key in content
        if key not in KEYS
    ]
    for key in ("settings", "variants", "vary", "tune"):
        if not isinstance(content.get(key, {}), dict):
            faults.append(UserError(f"{path}: {key} is not a mapping."))
    raise_all(faults)
    variants, tune_of = {}, {}
    for name, settings in content.get("variants", {}).items():
        if not isinstance(settings, dict):
            faults.append(UserError(f"{path}: variants.{name} is not a mapping of settings."))
            continue
        own = settings.pop("tune", None)
        if own:
            tune_of[str(name)] = _lists(own, f"{path}: variants.{name}.tune", faults, none=True)
        variants[str(name)] = _flat(settings)
    vary = _lists(content.get("vary", {}), f"{path}: vary", faults)
    tune = _lists(content.get("tune", {}), f"{path}: tune", faults)
    raise_all(faults)
    settings = [
        Override(tuple(key.split(".")), value, str(path)) for key, value in _flat(content.get("settings", {})).items()
    ]
    recipe = content.get("recipe")
    if recipe is not None and recipe not in shipped_recipes() and (path.parent / str(recipe)).is_file():
        recipe = str(path.parent / str(recipe))  # as in any file, a path is meant from where the file is
    seeds, tune_seeds = parse_seeds(content.get("seeds", 0)), parse_seeds(content.get("tune_seeds", 0))
    return Sweep(recipe, settings, variants, vary, seeds, tune, tune_of, tune_seeds, content.get("select"))


def _lists(content: Any, where: str, faults: list[UserError], *, none: bool = False) -> dict[str, Any]:
    """Settings with lists of their values; with `none`, null takes a list of all variants away."""
    lists: dict[str, Any] = {}
    for key, values in content.items() if isinstance(content, dict) else ():
        if (not isinstance(values, list) or not values) and not (none and values is None):
            faults.append(UserError(f"{where}.{key} is not a list of values.", f"Example: {key}: [1, 2]"))
            continue
        lists[str(key)] = values
    return lists


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Read `--vary optimizer.lr=1e-5,3e-5`; each value is YAML, and a list stands in brackets."""
    key, equals, values = text.partition("=")
    fault = UserError(f'--vary "{text}" is not KEY=VALUE,VALUE.', "Example: --vary optimizer.lr=1e-5,3e-5")
    if not equals or not key or not values:
        raise fault
    try:
        content = yaml.safe_load(f"[{values}]")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise fault from error
    return key, content


def parse_seeds(seeds: Any) -> tuple[int, ...]:
    """Read seeds: `3`, `0-4`, `0,2,7`, or a list of them. Raises UserError for what is none, and for a seed twice."""
    numbers: list[int] = []
    for part in seeds if isinstance(seeds, list) else str(seeds).split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part).strip())
        if match is None:
            raise UserError(f'seeds: "{part}" is no seed.', "Examples: 3, 0-4, 0,2,7")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers += range(first, last + 1)
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f'seeds: "{seeds}" names no seed, or one twice.', "Examples: 3, 0-4, 0,2,7")
    return tuple(numbers)


def expand(sweep: Sweep, chosen: Mapping[str, SettingValues] | None = None) -> list[Run]:
    """Every run of the sweep, seed by seed within a group. Raises UserError with every fault of their settings.

    `chosen` are the settings that each group has chosen for itself.
    """
    _check_varied_once(sweep)
    faults: list[UserError] = []
    runs: dict[str, Run] = {}
    for group, settings, _ in _groups(sweep):
        tuned = (chosen or {}).get(group, {})
        for seed in sweep.seeds:
            _add(runs, faults, sweep, group, seed, settings, tuned)
    raise_all(faults)
    return list(runs.values())


def candidates(sweep: Sweep) -> list[Run]:
    """The runs that groups choose by: every combination of what is tuned, each combination a group of its own."""
    _check_varied_once(sweep)
    faults: list[UserError] = []
    runs: dict[str, Run] = {}
    for group, settings, lists in _groups(sweep):
        for values in itertools.product(*lists.values()):
            tuned = dict(zip(lists, values, strict=True))
            for seed in sweep.tune_seeds if tuned else ():
                _add(runs, faults, sweep, group, seed, settings, tuned)
    raise_all(faults)
    return [replace(run, group=_words(run.group, run.tuned)) for run in runs.values()]


def _groups(sweep: Sweep) -> Iterator[tuple[str, SettingValues, Mapping[str, Sequence[Any]]]]:
    """Each group's name, its settings, and what it chooses for itself."""
    for variant in sweep.variants or {"": {}}:
        for values in itertools.product(*sweep.vary.values()):
            varied = dict(zip(sweep.vary, values, strict=True))
            group = _words(variant, varied) or "run"
            yield group, {**sweep.variants.get(variant, {}), **varied}, sweep.tuned(variant)


def _add(
    runs: dict[str, Run],
    faults: list[UserError],
    sweep: Sweep,
    group: str,
    seed: int,
    settings: SettingValues,
    tuned: SettingValues,
) -> None:
    try:
        run = _run(sweep, group, seed, settings, tuned)
    except UserError as fault:
        faults.append(fault)
        return
    if run.name in runs:
        faults.append(UserError(f'Two runs of the sweep are called "{run.name}".', "Name a value once."))
    runs[run.name] = run


def _words(variant: str, settings: SettingValues) -> str:
    """What a table calls a variant with these settings: without what a reader does not need of their names."""
    words = [variant] if variant else []
    words += [f"{key.removeprefix('objectives.')}={_word(value)}" for key, value in settings.items()]
    return ", ".join(words)


def _run(sweep: Sweep, group: str, seed: int, settings: SettingValues, tuned: SettingValues) -> Run:
    settings = {**settings, **tuned}
    overrides = [*sweep.settings, *sweep.flags]
    for key, value in {**settings, "seed": seed}.items():
        overrides.append(Override(tuple(key.split(".")), value, f"the sweep's {key}"))
    config = resolve(sweep.recipe, overrides).config
    left_out = []
    if "optimizer.name" in settings:
        left_out = _lacking(config.optimizer, settings)
        overrides += [Override(tuple(key.split(".")), None, f"the sweep's {key}") for key in left_out]
        config = resolve(sweep.recipe, overrides).config
    name = _folder_name(f"{_words(group, tuned)}, seed={seed}")
    return Run(name, group, seed, settings, config, tuple(left_out), group, tuned)


def _lacking(optimizer: OptimizerConfig, settings: SettingValues) -> list[str]:
    """The settings of all runs that this run's optimizer does not have, where optimizers are what is compared."""
    from dualoptim_cli.optim import find_optimizer  # loads torch

    known = find_optimizer(optimizer.name).settings
    lacking = []
    for name, value in optimizer.model_dump(exclude_defaults=True).items():
        can_be_null = OptimizerConfig.model_fields[name].default is None and name != "max_grad_norm"
        key = f"optimizer.{name}"
        if can_be_null and value is not None and name not in known and key not in settings:
            lacking.append(key)
    return lacking


def _check_varied_once(sweep: Sweep) -> None:
    """Refuse a setting that is to have two values in one run."""
    faults = []
    of_variants = dict.fromkeys(itertools.chain.from_iterable(sweep.variants.values()))
    tuned = dict.fromkeys(itertools.chain(sweep.tune, *sweep.tune_of.values()))
    for key in tuned:
        if key in sweep.vary or key == "seed":
            faults.append(UserError(f"{key} is tuned, and varied as well.", "Leave one of them out."))
    for key in sweep.vary:
        if key in of_variants:
            faults.append(UserError(f"{key} is varied, and set by a variant as well.", "Leave one of them out."))
        if key == "seed":
            faults.append(
                UserError("Seeds are not varied like other settings: runs are averaged over them.", "Use seeds.")
            )
    for override in (*sweep.settings, *sweep.flags):
        key = ".".join(override.keys)
        twice = key in of_variants and override in sweep.flags
        if key in sweep.vary or key in tuned or key == "seed" or twice:
            faults.append(UserError(f"{override.origin} sets {key}, which the sweep varies.", "Leave one of them out."))
    raise_all(faults)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or dotted settings as dotted keys."""
    return {".".join(keys): value for keys, value in leaves(settings)}


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def _folder_name(words: str) -> str:
    """A name that every file system takes; where characters had to go, a digest keeps two names apart."""
    name = re.sub(r"[^\w.+=-]+", "_", words, flags=re.ASCII).strip("._")
    if name != re.sub(", ", "_", words) or len(name) > LONGEST_NAME:
        digest = hashlib.sha256(words.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 9]}_{digest}"
    return name


def with_flags(
    sweep: Sweep,
    *,
    recipe: str | None,
    vary: Sequence[str],
    seeds: str | None,
    settings: Sequence[Override],
    tune: Sequence[str] = (),
    select: str | None = None,
) -> Sweep:
    """The sweep with what the command line adds; its settings win over the file's."""
    return replace(
        sweep,
        recipe=recipe or sweep.recipe,
        vary={**sweep.vary, **dict(map(parse_vary, vary))},
        tune={**sweep.tune, **dict(map(parse_vary, tune))},
        select=select or sweep.select,
        seeds=parse_seeds(seeds) if seeds else sweep.seeds,
        flags=(*sweep.flags, *settings),
    )
