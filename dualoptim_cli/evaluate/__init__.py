"""What a model says about rows: measured, attacked, judged."""

from __future__ import annotations

from dualoptim_cli.evaluate.evaluator import measure, sample_rows
from dualoptim_cli.evaluate.metrics import METRICS, SIGNALS
from dualoptim_cli.evaluate.results import Results, Score

__all__ = ["METRICS", "SIGNALS", "Results", "Score", "measure", "sample_rows"]
