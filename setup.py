"""Names the one extension module; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
                "eventproc._reorder",
                ["eventproc/_reorder.pyx"],
                extra_compile_args=["-O3"],
            )
        ],
        compiler_directives={"language_level": 3},
    )
)
