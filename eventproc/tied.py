"""`python -m eventproc.tied PARENT MODULE`: runs a program that dies with its parent, before its imports too.

A worker imports for about half a second, and on a busy host for several; one that was just being started
would outlive its supervisor by that. PARENT, a pid, tells whether the parent has died even before this runs.
"""

from __future__ import annotations

import os
import runpy
import sys

from eventproc.spawn import die_with_parent


def tied(module: str) -> tuple[str, ...]:
    """The command that runs `module` tied to this process."""
    return (sys.executable, "-m", "eventproc.tied", str(os.getpid()), module)


def main() -> None:
    """Run the module that argv names, as `python -m` does."""
    die_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
