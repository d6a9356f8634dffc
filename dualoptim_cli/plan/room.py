"""How much there is: memory of a device, free space of a disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualoptim_cli.files import free_bytes

CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Room:
    """A device and the bytes of memory it has in all."""

    device: str
    total: int


def room_of(device: str) -> Room:
    """The memory of a device: a GPU's own, otherwise the machine's or what its container is allowed."""
    import psutil
    import torch

    from dualoptim_cli.model.load import pick_device

    where = pick_device(device)
    if where.type == "cuda":
        return Room(str(where), int(torch.cuda.get_device_properties(where).total_memory))
    return Room(str(where), min(int(psutil.virtual_memory().total), *map(_limit, CGROUP)))


def _limit(file: Path) -> int:
    """The bytes that a control group allows; more than any machine has where it allows all."""
    limit = "max"
    if file.is_file():
        limit = file.read_text(encoding="ascii").strip()
    if limit.isdigit():
        return int(limit)
    return 2**63


def free_space(out: Path) -> int:
    """Bytes free where `out` will be, with those that it takes up now: a run replaces them."""
    return free_bytes(out) + sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
