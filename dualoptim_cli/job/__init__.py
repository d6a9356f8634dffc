"""The jobs as functions, for the CLI and for library users."""

from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.main import unlearn
from dualoptim_cli.job.outcome import Outcome

__all__ = ["Brief", "Outcome", "unlearn"]
