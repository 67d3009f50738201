"""Names the extension modules; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

#: Written in Cython.
CYTHON = ("_clock", "_reorder", "_entry", "_intake", "_run", "store/_encode")
#: Python, compiled with the types of the .pxd beside it. It runs from its source as well, and nothing that is
#: written in Cython knows its types.
COMPILED = tuple(
    str(types.with_suffix("").relative_to("eventproc"))
    for types in sorted(Path("eventproc").rglob("*.pxd"))
    if types.with_suffix(".py").exists()
)


def extensions(modules: tuple[str, ...], suffix: str, *options: str) -> list[Extension]:
    return [
        Extension(
            f"eventproc.{module.replace('/', '.')}",
            [f"eventproc/{module}{suffix}"],
            extra_compile_args=["-g0", *options],
        )
        for module in modules
    ]


setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=[
        *cythonize(extensions(CYTHON, ".pyx", "-O3"), compiler_directives={"language_level": 3}),
        *cythonize(
            # a method that a .pxd declares cannot be taken from its object (`partial(it.method)`)
            extensions(COMPILED, ".py", "-O2", "-Werror=incompatible-pointer-types"),
            compiler_directives={"language_level": 3, "annotation_typing": False},
        ),
    ],
)
