"""What a run ran on: versions and hardware, without the names of the machine or of its user."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    *(
        "dualopt",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "accelerate",
        "peft",
        "bitsandbytes",
        "datasets",
    ),
    *("numpy", "pydantic"),
)


def versions() -> dict[str, str]:
    """The versions of Python, of dualopt, and of each library that decides what a run computes, where installed."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def hardware(device: str) -> dict[str, str | int]:
    """The machine as far as it decides results and speed; `device` is where the model ran."""
    import psutil
    import torch

    machine: dict[str, str | int] = {
        "device": device,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        machine["cuda"] = torch.version.cuda or ""
    return machine


def _processor() -> str:
    """The processor's name, which Linux tells in a file and `platform` does not."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor()
