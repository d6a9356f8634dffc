"""Many runs from one description: the grid, the state of each run, the processes that run them, and their table."""
