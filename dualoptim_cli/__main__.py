"""`python -m dualoptim_cli` is `dualopt`."""

from __future__ import annotations

from typing import NoReturn

from dualoptim_cli.leaving import exit_at_once


def main() -> NoReturn:
    """Run dualopt with the arguments of this process; signals have their rule before anything else is imported."""
    exit_at_once()
    from dualoptim_cli.cli import main as run

    run()


if __name__ == "__main__":
    main()
