"""Faults of one source, gathered and told together: the first twenty, then a count."""

from __future__ import annotations

from dualoptim_cli.errors import ExitCode, UserError

SHOWN = 20


class Faults:
    """Gathers what is wrong with the source called `name`; counts all, keeps the first twenty."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._first: list[UserError] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, fault: UserError) -> None:
        """Take note of one fault."""
        self.count += 1
        if len(self._first) < SHOWN:
            self._first.append(fault)

    def raise_all(self) -> None:
        """Raise one UserError for all of them; without any, return."""
        if not self.count:
            return
        if self.count == 1:
            raise self._first[0]
        lines = [f"{self.name} has {self.count} faults:", *(f"- {fault.message}" for fault in self._first)]
        if self.count > SHOWN:
            lines.append(f"- and {self.count - SHOWN} more")
        hints = dict.fromkeys(fault.hint for fault in self._first if fault.hint)
        raise UserError("\n".join(lines), " ".join(hints), max(self._first, key=_code).code)


def _code(fault: UserError) -> ExitCode:
    return fault.code
