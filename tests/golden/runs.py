"""The golden runs as one literal table: what `BASE` says, and what each run has otherwise.

Every setting is written down, those with a default included, so that a later change of a default moves no run.
`test_golden.py` checks that: a new setting of the package needs its line here.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.golden.village import TEMPLATE

STEPS, STOP = 12, 7
COUNTING = {"all_tokens": 0, "skip_first": 0}

BASE: dict[str, Any] = {
    "request_id": None,
    "allow_no_retain": False,
    "obtain": {},
    "model": {
        "name": "{village}/model",
        "revision": None,
        "dtype": "float32",
        "mixed_precision": "no",
        "device": "cpu",
        "gradient_checkpointing": False,
        "freeze_embeddings": False,
        "load_in": None,
        "frozen_dtype": "float32",
        "frozen_device": "cpu",
        "trust_remote_code": False,
    },
    "objectives": {
        "forget": {
            "data": "{village}/forget.jsonl",
            "loss": "simnpo",
            "options": {"beta": 4.5, "delta": 0.0, **COUNTING},
            "weight": 1.0,
            "steps": 1,
            "lr_ratio": 1.0,
        },
        "retain": {
            "data": "{village}/retain.jsonl",
            "loss": "gd",
            "options": COUNTING,
            "weight": 1.0,
            "steps": 2,
            "lr_ratio": 1.0,
        },
    },
    "data": {
        "holdout": "{village}/holdout.jsonl",
        "unseen": None,
        "reworded": None,
        "general": None,
        "keywords": None,
        "columns": {
            "prompt": "question",
            "answer": "answer",
            "paraphrased_answer": "paraphrased_answer",
            "perturbed_answer": "perturbed_answer",
        },
        "template": TEMPLATE,
        "max_length": 32,
        "long_rows": "refuse",
        "stride": None,
        "refusals": "{village}/refusals.txt",
    },
    "optimizer": {
        "name": "dualoptim+",
        "lr": 1e-3,
        "state_bits": 32,
        "min_8bit_size": 4096,
        "float32_embeddings": True,
        "betas": [0.9, 0.95],
        "base_betas": [0.95, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "bridge": 1.0,
        "second_bridge": 1.0,
        "second_moment": "dual",
        "guard": "moments",
        "stochastic_rounding": True,
        "compile": False,
        "max_grad_norm": None,
    },
    "schedule": {
        "mode": "alternate",
        "steps": STEPS,
        "until": "off",
        "batch_size": 4,
        "micro_batch_size": 4,
        "warmup": 0.1,
        "decay": "linear",
        "on_nonfinite": "stop",
        "on_collapse": "stop",
    },
    "lora": None,
    "checkpoint": {"every": 5, "keep": 1, "keep_at_end": False},
    "eval": {
        "rows": 6,
        "seed": 0,
        "max_new_tokens": 12,
        "batch_size": 4,
        "gates": ["forget.prob <= 0.5*before", "retain.rougeL >= 0.5"],
        "attacks": "none",
        "every": None,
        "probe_rows": 6,
        "probe_answers": None,
        "reference": None,
        "answer_ppl": False,
        "similarity_model": None,
        "entailment_model": None,
        "min_k": 0.2,
    },
    "seed": 0,
    "threads": 1,
}

OF_A_BASE = dict.fromkeys(("base_betas", "bridge", "second_bridge", "second_moment"))
NO_SUCH_SETTING_OF_ADAMW = OF_A_BASE | dict.fromkeys(
    ("guard", "min_8bit_size", "float32_embeddings", "stochastic_rounding", "compile")
)
RUNS: dict[str, dict[str, Any]] = {
    "dualoptim+": {},
    "resumed": {},  # stopped after step STOP and resumed: its digests are those of "dualoptim+"
    "measured": {  # all that evaluation does without a judge model, and the attacks
        "data": {"unseen": "{village}/unseen.jsonl"},
        "eval": {
            "rows": "all",
            "reference": "{village}/reference",
            "attacks": ["int8", "int4", "nf4", "relearn-forget", "relearn-retain", "sample", "paraphrase", "prefix"],
        },
    },
    "8-bit": {"optimizer": {"state_bits": 8, "min_8bit_size": 64}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "bfloat16-8-bit": {"model": {"dtype": "bfloat16"}, "optimizer": {"state_bits": 8, "min_8bit_size": 64}},
    "muon": {"optimizer": {"name": "dualoptim+muon"}},
    "dualoptim": {"optimizer": {"name": "dualoptim", "guard": "none", **OF_A_BASE}},
    "lora": {
        "optimizer": {"lr": 1e-2},
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.05, "target": "all-linear", "adapter": None},
    },
    "joint-adamw": {
        "optimizer": {"name": "adamw", **NO_SUCH_SETTING_OF_ADAMW},
        "schedule": {"mode": "joint", "micro_batch_size": 2},
    },
    "npo": {"objectives": {"forget": {"loss": "npo", "options": {"beta": 0.1, **COUNTING}, "weight": 0.5}}},
    "kl": {"objectives": {"retain": {"loss": "kl", "options": COUNTING}}},
    "rmu": {
        "objectives": {
            "forget": {"loss": "rmu", "options": {"coefficient": 2.0, "layer": 0, "layers": 1, **COUNTING}},
            "retain": {"loss": "rmu-retain", "options": {"layer": 0, **COUNTING}},
        }
    },
    "dpo": {"objectives": {"forget": {"loss": "dpo", "options": {"beta": 0.1, **COUNTING}}}},
}


def settings(name: str, village: Path) -> dict[str, Any]:
    """All settings of a golden run whose models and rows are in the folder `village`."""
    merged = deepcopy(BASE)
    for section, changes in RUNS[name].items():
        if section == "objectives":
            for objective, parts in changes.items():
                merged[section][objective] |= parts
        elif merged[section] is None:
            merged[section] = changes
        else:
            merged[section] |= changes
    return _put_folder(merged, str(village))


def _put_folder(value: Any, village: str) -> Any:
    """The value with the village's folder in the place of its mark."""
    if isinstance(value, dict):
        return {key: _put_folder(each, village) for key, each in value.items()}
    if isinstance(value, str):
        return value.replace("{village}", village)
    return value
