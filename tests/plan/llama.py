"""Configs of Llamas, of which no weight exists, and runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from dualoptim_cli.config import RunConfig
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.plan import Plan, plan_run
from dualoptim_cli.plan.setup import Setup

SEVEN_B = {  # what meta-llama/Llama-2-7b's conversion has in its config.json
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LITTLE = {**SEVEN_B, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
LITTLE |= {"num_attention_heads": 4, "num_key_value_heads": 4}


def written(folder: Path, **sizes: Any) -> Path:
    """A folder with the config.json of a Llama of these sizes, and nothing else."""
    LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return folder


def run_of(**sections: Any) -> RunConfig:
    """A run of forget and retain on a CPU, in bfloat16 if nothing else is said, 2 rows of 4 at once."""
    objectives = {"forget": {"data": "f"}, "retain": {"data": "r"}} | sections.pop("objectives", {})
    model = {"name": "llama", "device": "cpu", "dtype": "bfloat16", **sections.pop("model", {})}
    schedule = {"batch_size": 4, "micro_batch_size": 2, **sections.pop("schedule", {})}
    return RunConfig.model_validate({"model": model, "objectives": objectives, "schedule": schedule, **sections})


def setup_of(**sections: Any) -> Setup:
    """What decides how much a step of such a run holds."""
    return Brief.of(run_of(**sections)).setup


def numbers_of(config: RunConfig, sizes: Mapping[str, int], width: int) -> Plan:
    """The numbers of a run, with so many rows of each objective."""
    brief = Brief.of(config)
    return plan_run(
        config.schedule,
        brief.turns,
        sizes,
        width,
        lr=config.optimizer.lr,
        adapter=config.lora is not None,
        probes=config.eval,
        sets=len(brief.sets),
    )
