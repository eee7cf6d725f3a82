"""What pyproject.toml cannot say about the package.

Into every wheel goes what lies beside the package in a checkout and is no Python: the C++ and CUDA
sources and the engine recipes, as ``rainfusion_trt/_sources``. With RAINFUSION_TRT_WHEEL_LIBRARIES,
which scripts/build_wheel.sh sets, also the compiled libraries of that directory, as
``rainfusion_trt/lib``; the wheel is then one for this platform, and for any Python.
"""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ("CMakeLists.txt", "plugins/**/*", "engines/*")
SUFFIXES = {".cc", ".cmake", ".cu", ".cuh", ".h", ".in", ".map", ".md", ".txt", ".yaml"}
LIBRARIES = os.environ.get("RAINFUSION_TRT_WHEEL_LIBRARIES")


class BuildPackage(build_py):
    def run(self):
        if self.editable_mode:  # the checkout's own files are used
            super().run()
            return
        # What an earlier build left there would go into the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        package = Path(self.build_lib, "rainfusion_trt")
        for pattern in SOURCES:
            for file in sorted(ROOT.glob(pattern)):
                if file.is_file() and file.suffix in SUFFIXES:
                    self._copy(file, package / "_sources" / file.relative_to(ROOT))
        if LIBRARIES:
            # With the stamp that says what the libraries were built from.
            for file in sorted(Path(LIBRARIES).glob("librainfusion_trt*.so*")):
                self._copy(file, package / "lib" / file.name)

    def _copy(self, source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(source), str(target))


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if LIBRARIES else (python, abi, platform)


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return bool(LIBRARIES)


setup(
    cmdclass={"build_py": BuildPackage, "bdist_wheel": PlatformWheel},
    distclass=PlatformDistribution,
)
