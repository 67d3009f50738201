"""Named faults from outside, and the runner that mixes them: `python -m tests.faults.chaos --help`."""
