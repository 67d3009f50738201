"""`python -m eventproc.tied MODULE`: runs a program that dies with its parent, from before its imports on.

A worker imports for about a second; one that was just being started would outlive its supervisor by that.
"""

from __future__ import annotations

import os
import runpy
import sys

from eventproc.spawn import die_with_parent


def main() -> None:
    """Run the module that argv names, as `python -m` does."""
    die_with_parent(os.getppid())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
