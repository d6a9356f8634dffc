"""What a finished run reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualoptim_cli.evaluate.gates import Judgment
    from dualoptim_cli.evaluate.results import Results
    from dualoptim_cli.job.ask import Answered


@dataclass(frozen=True)
class Outcome:
    """A finished run: scores before and after, gates, one line of verdict, and where everything lies.

    `forget` names the sets to forget. `knew` tells whether the model knew the forget rows before; None where no
    objective takes rows away. `samples` are questions with both answers, for the screen alone: they are in no file and
    no JSON.
    """

    out: Path
    before: Results
    after: Results
    judgments: tuple[Judgment, ...]
    verdict: str
    knew: bool | None
    steps: int
    seconds: float
    reference: Results | None = None
    samples: Sequence[Answered] = ()
    forget: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(judgment.passed for judgment in self.judgments)

    @property
    def weights(self) -> Path:
        """The folder of the model that the run left, or of the adapter."""
        adapter = self.out / "adapter"
        return adapter if adapter.is_dir() else self.out / "model"

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds: the result without what differs from one equal run to the next."""
        result = self.to_json()
        return {key: result[key] for key in result if key not in {"out", "model", "seconds"}}

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt unlearn --json`."""
        return {
            "out": str(self.out),
            "model": str(self.weights),
            "verdict": self.verdict,
            "passed": self.passed,
            "gates": [judgment.to_json() for judgment in self.judgments],
            "model_knew_forget_rows": self.knew,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "reference": self.reference and self.reference.to_json(),
        }
