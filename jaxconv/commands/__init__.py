"""What the command line runs: one module per command, each with a `run`."""

INTERRUPTED = 130
"""Exit status of a command that the user ended, as shells have it."""
