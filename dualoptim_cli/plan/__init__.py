"""What a run will do and need, decided before anything is loaded. Imports no torch by itself."""

from dualoptim_cli.plan.choices import FEWEST_TURNS, MOST_TURNS, Choice, auto_lr
from dualoptim_cli.plan.run import Plan, plan_run, with_needs

__all__ = ["FEWEST_TURNS", "MOST_TURNS", "Choice", "Plan", "auto_lr", "plan_run", "with_needs"]
