"""What makes a resumed run the same run: the settings that matter, and what the model is shown, by digest."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import Examples
from dualoptim_cli.evaluate.judges import JUDGES
from dualoptim_cli.job.planning import Planned
from dualoptim_cli.model.load import Loaded
from dualoptim_cli.recipes import leaves, to_yaml
from dualoptim_cli.record.folder import RunFolder

HARMLESS = ("checkpoint.", "eval.", "schedule.on_", "obtain", "request_id", "allow_no_retain", "threads")
"""Settings that may change: how often is saved, what is measured, what is done about faults, who asked.

Another number of threads or another device changes the last bits of what follows, and no more.
"""
ROUNDING = ("model.device", "model.frozen_device", "schedule.micro_batch_size")
NAMES = ("model.name", "data.holdout", "data.unseen", "data.refusals", ".data")
"""Where things lie. What lies there is compared instead: rows by `tokens_digest`, the model by the record."""
MEASURED_BY = ("rows", "seed", "max_new_tokens", "min_k", *(f"{judge}_model" for judge in JUDGES), "reference")
"""Settings that the measurement of the model as it was depends on, beside the data."""
ROWS_AT_ONCE = 256


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that must be the same for a run to go on."""
    settings = {".".join(keys): value for keys, value in leaves(config.model_dump(mode="json"))}
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith(HARMLESS) and key not in ROUNDING and not key.endswith(NAMES)
    }


def in_precision_of(earlier: RunConfig, config: RunConfig) -> RunConfig:
    """The config with the precision that the run began with, where it leaves that to us: not this processor's."""
    if config.model.mixed_precision != "auto":
        return config
    model = config.model.model_copy(update={"mixed_precision": earlier.model.mixed_precision})
    return config.model_copy(update={"model": model})


def go_on(folder: RunFolder, earlier: RunConfig, config: RunConfig) -> None:
    """Write down the settings that hold from now on; a measurement that was made with others is dropped."""
    if any(getattr(earlier.eval, name) != getattr(config.eval, name) for name in MEASURED_BY):
        folder.write_metrics({})
    folder.keep_config(to_yaml(config))


def identity_of(planned: Planned, dtype: str, key: bytes) -> dict[str, Any]:
    """What a checkpoint is marked with: settings, the numbers behind every "auto", and what is learned from."""
    config, plan = planned.brief.config, planned.plan
    identity = settings_of(config)
    identity |= {"schedule.steps": plan.steps, "optimizer.lr": plan.lr, "model.dtype": dtype}
    identity |= {f"rows of {name}": len(planned.examples[name]) for name in config.objectives}
    for name, sizes in planned.sizes.items():
        identity[f"data of {name}"] = tokens_digest(planned.examples[name], sizes, key)
    identity["refusals"] = texts_digest(planned.opened.refusals)
    return identity


def dtype_of(loaded: Loaded) -> str:
    """The number format of the weights, as settings name it."""
    return str(loaded.dtype).removeprefix("torch.")


def tokens_digest(examples: Examples, rows: Iterable[int], key: bytes) -> str:
    """A digest, with the key of the run, of what the model is shown of these rows: their tokens, and which count.

    It changes with the rows, the tokenizer, the template and the length they are cut to. An error of a resumption shows
    it, and few rows could be guessed from a plain digest.
    """
    digest, numbers = hmac.new(key, digestmod="sha256"), list(rows)
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        some = numbers[start : start + ROWS_AT_ONCE]
        for row, encoded in zip(some, examples.encode(some), strict=True):
            digest.update(json.dumps([row, list(encoded.ids), list(encoded.labels)]).encode())
    return digest.hexdigest()[:32]


def texts_digest(texts: Sequence[str]) -> str:
    """A digest of texts that are no rows, such as refusals."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:32]


def name_rows(examples: Mapping[str, Examples], most: int = 20) -> Callable[[str, Sequence[int]], str]:
    """Rows as a person finds them: by file and line, the first twenty."""

    def name(objective: str, rows: Sequence[int]) -> str:
        places = [examples[objective].record(row).where for row in rows[:most]]
        more = f" and {len(rows) - most} more" if len(rows) > most else ""
        return ", ".join(places) + more

    return name
