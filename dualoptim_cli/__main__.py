"""`python -m dualoptim_cli` is `dualopt`."""

from dualoptim_cli.cli import main

if __name__ == "__main__":
    main()
