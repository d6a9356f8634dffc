"""What can go wrong for a user, and the exit code that tells a script which kind it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from errno import ENOMEM
from typing import Any


class ExitCode(IntEnum):
    """What the process tells its caller."""

    OK = 0
    BUG = 1
    USAGE = 2  # usage, configuration or data
    GATE = 3  # the run ended and a gate failed
    RESOURCES = 4  # memory, disk, a lock held by another run
    INTEGRITY = 5  # resume or hash mismatch
    TRAINING = 6  # training stopped itself
    INTERRUPTED = 130  # resumable


OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    "Cannot allocate memory",
)
"""What the allocators of PyTorch put into their RuntimeErrors (CPU, CUDA and MPS, cuBLAS), and safetensors into its."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    kind = type(error).__name__  # torch need not be imported to know its errors
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return True
    talks = isinstance(error, RuntimeError) or kind == "SafetensorError"
    return talks and any(saying in str(error) for saying in OUT_OF_MEMORY)


PLACE = re.compile(r"(?P<file>[^\n]+?\.[\w.]+):(?P<line>\d+)(?=[: ])")
"""`forget.jsonl:17 has no …`, `mine.yaml:3: …`"""
SETTING = re.compile(
    r"(?:^|: )(?:--set )?(?P<name>--[a-z][a-z0-9-]*|[a-z][\w-]*(?:\.[\w-]+)+)(?=: | is (?:missing|not a setting))"
)
"""`--lr: optimizer.lr: …`, `mine.yaml:3: data.max_length: …`, `model.name is missing`: the flag, else the setting."""


class UserError(Exception):
    """A fault that the user can mend: what is the case, and the way out."""

    def __init__(self, message: str, hint: str = "", code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.parts: tuple[UserError, ...] = ()  # the faults that this one lists, where it is a list

    def to_json(self) -> dict[str, Any]:
        """The fault as scripts read it: a message about a setting or a row begins with its name."""
        place, setting = PLACE.match(self.message), SETTING.search(self.message)
        return {
            "kind": self.code.name.lower(),
            "setting": setting and setting["name"],
            "file": place and place["file"],
            "line": int(place["line"]) if place else None,
            "text": self.message,
            "way_out": self.hint,
        }


def raise_all(faults: Sequence[UserError]) -> None:
    """Raise every fault found, as one error that lists them, each once; with no faults, return."""
    distinct: dict[tuple[str, str], UserError] = {}
    for fault in faults:
        for part in fault.parts or (fault,):
            distinct[part.message, part.hint] = part
    faults = list(distinct.values())
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    lines = [f"{len(faults)} faults were found:"]
    lines += [f"- {fault.message} {fault.hint}".rstrip() for fault in faults]
    error = UserError("\n".join(lines), code=max(fault.code for fault in faults))
    error.parts = tuple(faults)
    raise error


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """One sentence that lists the choices for a mistyped name and points to the nearest."""
    from difflib import get_close_matches

    listed = f"Choose from: {', '.join(choices)}."
    swapped = [choice for choice in choices if sorted(choice) == sorted(name)]
    containing = [choice for choice in choices if name and name.lower() in choice.lower()]
    for near in swapped or get_close_matches(name, choices, n=1) or containing:
        return f'Did you mean "{near}"? {listed}'
    return listed
