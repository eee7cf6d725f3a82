"""An engine recipe was called a profile in 0.1: those names work and warn once."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from rainfusion_trt import engine
from rainfusion_trt.engine import build_engine
from rainfusion_trt.errors import InvalidInputError

NAMES = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from rainfusion_trt import engine
    from rainfusion_trt.engine import EngineProfile, load_profile
    from rainfusion_trt.engine import EngineProfile
assert EngineProfile is engine.EngineRecipe and load_profile is engine.load_recipe
print(*sorted(f"{w.category.__name__}: {w.message}" for w in caught), sep="\\n")
"""


def test_old_names_warn_once():
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "FutureWarning: rainfusion_trt.engine.EngineProfile is now EngineRecipe",
        "FutureWarning: rainfusion_trt.engine.load_profile is now load_recipe",
    ]


def test_names_that_never_were():
    with pytest.raises(AttributeError, match="EnginePlan"):
        _ = engine.EnginePlan


def test_build_engine_takes_profile(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with (
        pytest.warns(FutureWarning, match="recipe=") as caught,
        pytest.raises(InvalidInputError, match="nowhere"),
    ):
        build_engine(tmp_path / "model.onnx", profile=tmp_path / "nowhere.yaml")
    assert caught[0].filename == __file__


def test_build_engine_takes_one_recipe(tmp_path):
    recipe = engine.EngineRecipe(precision="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInputError, match="recipe is missing"):
            build_engine(tmp_path / "model.onnx")
        with pytest.raises(InvalidInputError, match="give recipe only"):
            build_engine(tmp_path / "model.onnx", recipe=recipe, profile=recipe)
