"""Names the extension modules; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = ("_reorder", "_entry", "_intake", "_run", "store/_encode")

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"eventproc.{module.replace('/', '.')}",
                [f"eventproc/{module}.pyx"],
                extra_compile_args=["-O3", "-g0"],
            )
            for module in MODULES
        ],
        compiler_directives={"language_level": 3},
    )
)
