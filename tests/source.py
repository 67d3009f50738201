"""Lets eventproc's compiled Python modules run from their source: `python -m pytest -p tests.source FILE`.

Of what is compiled a test cannot change a method, nor can it put something of another type in its place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class FromSource(MetaPathFinder):
    """Finds the .py of a module that has a .pxd beside it, before its extension module is found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package.partition(".")[0] != "eventproc":
            return None
        for folder in path or ():
            source = Path(folder) / f"{name}.py"
            if source.exists() and source.with_suffix(".pxd").exists():
                return importlib.util.spec_from_file_location(fullname, source)
        return None


assert "eventproc.pipeline" not in sys.modules, "too late: eventproc is imported already"
sys.meta_path.insert(0, FromSource())
