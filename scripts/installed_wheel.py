"""Checks of check_wheel.sh on the environment with the installed wheel: python FILE VENV."""

import re
import shutil
import sys
from pathlib import Path

import rainfusion_trt
from rainfusion_trt.engine.recipes import shipped_recipes
from rainfusion_trt.operator.native import load_library
from rainfusion_trt.plugin.build import find_library, source_directory, source_hash

venv = Path(sys.argv[1]).resolve()
programs = ("c++", "g++", "clang++", "cc", "gcc", "nvcc", "cmake", "ninja")
found = [path for path in map(shutil.which, programs) if path]
assert not found, f"this environment is not clean: {found}"

package = Path(rainfusion_trt.__file__).resolve().parent
assert package.is_relative_to(venv), f"{package} is not the wheel's"
assert find_library() == package / "lib" / "librainfusion_trt.so", find_library()
assert source_directory() == package / "_sources", source_directory()
assert "cogvideox-5b" in shipped_recipes(), shipped_recipes()

info = load_library().build_info
version, sources, *targets = re.split("[+ ]", info)
assert version == rainfusion_trt.__version__, info
assert sources == source_hash(source_directory()), f"{info}: built from other sources than it has"
assert {"sm_80", "sm_90a", "sm_120", "compute_90", "compute_120"} <= set(targets), info
print(f"{package}: {info}")
