"""From the description of a sweep to its runs: every variant × every varied setting × every seed.

A group is what a sweep compares: the runs that differ in nothing but their seed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dualoptim_cli.config import OptimizerConfig, RunConfig
from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.recipes import Override, leaves, resolve, shipped_recipes

Settings = Mapping[str, Any]
"""Dotted key → value."""
KEYS = ("recipe", "settings", "variants", "vary", "seeds")
LONGEST_NAME = 120  # characters of a run's folder; file systems take 255 bytes, and suffixes are added


@dataclass(frozen=True)
class Sweep:
    """What a sweep is to run.

    `settings` hold for every run. `variants` are named settings that go together, `vary` settings with the values that
    each of them takes; the grid is their product, once for each seed.
    """

    recipe: str | None = None
    settings: Sequence[Override] = ()
    variants: Mapping[str, Settings] = field(default_factory=dict)
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its folder's name, what it varies by, its seed, and its checked config.

    `left_out` are settings for all runs that this run's optimizer does not have.
    """

    name: str
    group: str
    seed: int
    varied: Settings
    config: RunConfig
    left_out: tuple[str, ...] = ()


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
    for key in ("settings", "variants", "vary"):
        if not isinstance(content.get(key, {}), dict):
            faults.append(UserError(f"{path}: {key} is not a mapping."))
    raise_all(faults)
    variants = {}
    for name, settings in content.get("variants", {}).items():
        if not isinstance(settings, dict):
            faults.append(UserError(f"{path}: variants.{name} is not a mapping of settings."))
            continue
        variants[str(name)] = _flat(settings)
    vary = {}
    for key, values in content.get("vary", {}).items():
        if not isinstance(values, list) or not values:
            faults.append(UserError(f"{path}: vary.{key} is not a list of values.", f"Example: {key}: [1, 2]"))
            continue
        vary[str(key)] = values
    raise_all(faults)
    settings = [
        Override(tuple(key.split(".")), value, str(path)) for key, value in _flat(content.get("settings", {})).items()
    ]
    recipe = content.get("recipe")
    if recipe is not None and recipe not in shipped_recipes() and (path.parent / str(recipe)).is_file():
        recipe = str(path.parent / str(recipe))  # as in any file, a path is meant from where the file is
    return Sweep(recipe, settings, variants, vary, parse_seeds(content.get("seeds", 0)))


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


def expand(sweep: Sweep) -> list[Run]:
    """Every run of the sweep, seed by seed within a group. Raises UserError with every fault of their settings."""
    _check_varied_once(sweep)
    faults: list[UserError] = []
    runs: dict[str, Run] = {}
    short = _short_keys(sweep.vary)
    for variant in sweep.variants or {"": {}}:
        for values in itertools.product(*sweep.vary.values()):
            chosen = dict(zip(sweep.vary, values, strict=True))
            words = [variant] if variant else []
            words += [f"{short[key]}={_word(value)}" for key, value in chosen.items()]
            settings = {**sweep.variants.get(variant, {}), **chosen}
            group = ", ".join(words) or "run"
            for seed in sweep.seeds:
                try:
                    run = _run(sweep, group, seed, settings)
                except UserError as fault:
                    faults.append(fault)
                    continue
                if run.name in runs:
                    faults.append(UserError(f'Two runs of the sweep are called "{run.name}".', "Name a value once."))
                runs[run.name] = run
    raise_all(faults)
    return list(runs.values())


def _run(sweep: Sweep, group: str, seed: int, settings: Settings) -> Run:
    overrides = list(sweep.settings)
    for key, value in {**settings, "seed": seed}.items():
        overrides.append(Override(tuple(key.split(".")), value, f"the sweep's {key}"))
    config = resolve(sweep.recipe, overrides).config
    left_out = []
    if "optimizer.name" in settings:
        left_out = _lacking(config.optimizer, settings)
        overrides += [Override(tuple(key.split(".")), None, f"the sweep's {key}") for key in left_out]
        config = resolve(sweep.recipe, overrides).config
    return Run(_folder_name(f"{group}, seed={seed}"), group, seed, settings, config, tuple(left_out))


def _lacking(optimizer: OptimizerConfig, settings: Settings) -> list[str]:
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
    for key in sweep.vary:
        if key in of_variants:
            faults.append(UserError(f"{key} is varied, and set by a variant as well.", "Leave one of them out."))
        if key == "seed":
            faults.append(
                UserError("Seeds are not varied like other settings: runs are averaged over them.", "Use seeds.")
            )
    for override in sweep.settings:
        key = ".".join(override.keys)
        if key in sweep.vary or key in of_variants or key == "seed":
            faults.append(UserError(f"{override.origin} sets {key}, which the sweep varies.", "Leave one of them out."))
    raise_all(faults)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or dotted settings as dotted keys."""
    return {".".join(keys): value for keys, value in leaves(settings)}


def _short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key without what a reader does not need: `objectives.forget.loss` is "forget.loss"."""
    return {key: key.removeprefix("objectives.") for key in keys}


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
    sweep: Sweep, *, recipe: str | None, vary: Sequence[str], seeds: str | None, settings: Sequence[Override]
) -> Sweep:
    """The sweep with what the command line adds; its settings come last and so win over the file's."""
    varied = dict(sweep.vary)
    for text in vary:
        key, values = parse_vary(text)
        varied[key] = values
    return replace(
        sweep,
        recipe=recipe or sweep.recipe,
        vary=varied,
        seeds=parse_seeds(seeds) if seeds else sweep.seeds,
        settings=(*sweep.settings, *settings),
    )
