"""Faults of one source, raised together: the first twenty, then a count."""

from __future__ import annotations

from dualoptim_cli.errors import ExitCode, UserError

SHOWN = 20


class Faults:
    """Gathers what is wrong with the source called `name`; counts all, keeps the first twenty."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.first: list[UserError] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, fault: UserError) -> None:
        """Add one fault, or all that another gathering raised together."""
        if isinstance(fault, SeveralFaults):
            self.count += fault.gathered.count
            self.first += fault.gathered.first
        else:
            self.count += 1
            self.first.append(fault)
        del self.first[SHOWN:]

    def raise_all(self) -> None:
        """Raise one UserError for all of them; without any, return."""
        if not self.count:
            return
        if self.count == 1:
            raise self.first[0]
        lines = [f"{self.name} has {self.count} faults:", *(f"- {fault.message}" for fault in self.first)]
        if self.count > SHOWN:
            lines.append(f"- and {self.count - SHOWN} more")
        hints = dict.fromkeys(fault.hint for fault in self.first if fault.hint)
        raise SeveralFaults(self, "\n".join(lines), " ".join(hints), max(self.first, key=_code).code)


class SeveralFaults(UserError):
    """Faults raised together, still at hand for whoever gathers more of them."""

    def __init__(self, gathered: Faults, message: str, hint: str, code: ExitCode) -> None:
        super().__init__(message, hint, code)
        self.gathered = gathered


def _code(fault: UserError) -> ExitCode:
    return fault.code
