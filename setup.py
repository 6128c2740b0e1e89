"""Builds the compiled parts. Everything else about the project is in pyproject.toml.

One binary serves every machine: each instruction set has its own C file that turns its features on by itself, so no
flag here names a processor. `-ffp-contract=off` and the absence of fast-math are part of what the results mean
(cyx-exact/1); `-fno-math-errno` and `-fno-trapping-math` only drop side effects, never change a value.
"""

import glob
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "cyxcore/kernels"
GCC_ONLY = "-fvect-cost-model=dynamic"  # what clang does anyway, and does not know by this name
FLAGS = [
    "-O2",
    "-ftree-vectorize",
    GCC_ONLY,
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
]


def kernels(module: str, folder: str) -> Extension:
    """An extension of kernels in C: the .pyx of its name, and every C file of a folder."""
    return Extension(
        f"cyxcore.kernels.{module}",
        sources=[f"{KERNELS}/{module}.pyx", *sorted(glob.glob(f"{folder}/*.c"))],
        depends=sorted(glob.glob(f"{KERNELS}/src/*.[hi]*") + glob.glob(f"{folder}/*.[hi]*")),
        include_dirs=[folder, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=FLAGS,
        libraries=["m", "pthread"],
    )


cpu = kernels("cpu", f"{KERNELS}/src")
language = kernels("language", f"{KERNELS}/src/language")
tensors = Extension(
    "cyxcore.kernels.tensors",
    sources=[f"{KERNELS}/tensors.pyx"],
    depends=[
        *(f"{KERNELS}/src/{name}.h" for name in ("blocks", "cyx", "reuse")),
        *sorted(glob.glob(f"{KERNELS}/*.pxi")),
    ],
    include_dirs=[f"{KERNELS}/src", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    extra_compile_args=FLAGS,
)
jsonlists = Extension(
    "cyxcore.kernels.jsonlists",
    sources=[f"{KERNELS}/jsonlists.pyx"],
    include_dirs=[numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    extra_compile_args=FLAGS,
    libraries=["m"],
)
scan = Extension("cyxnet.scan", sources=["cyxnet/scan.pyx"], extra_compile_args=FLAGS)
curve = Extension(
    "cyxcentral.curve",
    sources=["cyxcentral/curve.pyx", "cyxcentral/lanes.c"],
    depends=["cyxcentral/lanes.h"],
    include_dirs=["cyxcentral"],
    extra_compile_args=FLAGS,
)


class BuildInParallel(build_ext):
    """One compiler process per core: setuptools compiles the sources of an extension one after another."""

    def build_extension(self, ext: Extension) -> None:
        asked = [*self.compiler.compiler_so, GCC_ONLY, "-fsyntax-only", "-x", "c", os.devnull]
        if subprocess.run(asked, capture_output=True).returncode:
            ext.extra_compile_args = [flag for flag in ext.extra_compile_args if flag != GCC_ONLY]
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], *args: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_all, [source], *args, **options) for source in sources]
                return [name for job in jobs for name in job.result()]

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all


setup(
    ext_modules=cythonize([cpu, language, tensors, jsonlists, scan, curve], compiler_directives={"language_level": 3}),
    cmdclass={"build_ext": BuildInParallel},
)
