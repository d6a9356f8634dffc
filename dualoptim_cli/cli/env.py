"""`dualopt env`: what a bug report needs, and nothing that names the machine or its user."""

from __future__ import annotations

import os
from pathlib import Path

from dualoptim_cli.cli.console import emit, quiet_libraries
from dualoptim_cli.cli.options import Debug, Json

VARIABLES = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("PYTORCH_CUDA_ALLOC_CONF", "NO_COLOR", "TERM"),
)


def env(json: Json = False, debug: Debug = False) -> None:  # noqa: ARG001
    """Show versions, hardware and what is installed, for a bug report."""
    import torch

    from dualoptim_cli.model.load import pick_device
    from dualoptim_cli.record.surroundings import hardware, versions

    quiet_libraries()
    machine = {
        "versions": versions(),
        "hardware": hardware(str(pick_device("auto"))),
        "torch": {"built for CUDA": torch.version.cuda or "no", "CUDA devices": torch.cuda.device_count()},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "hub cache": _home(os.environ.get("HF_HOME", "~/.cache/huggingface")),
    }
    if json:
        emit(machine)
        return
    for name, facts in machine.items():
        for key, value in (facts if isinstance(facts, dict) else {"": facts}).items():
            emit(f"{f'{name} {key}'.strip():<28} {value}")


def _home(path: str) -> str:
    """A path with the user's home as ~, since its name is the user's."""
    home = str(Path.home())
    return path.replace(home, "~", 1) if path.startswith(home) else path
