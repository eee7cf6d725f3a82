"""Real builds by TensorRT for RTX, which needs no GPU to build for named targets."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.engine_models import PROFILE, write_model
from rainfusion_trt.engine import build_engine, load_metadata, load_recipe
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.messages import BuildRequest
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.recipe import BuilderSettings, EngineRecipe
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.errors import (
    BackendUnavailableError,
    EngineBuildError,
    InvalidInputError,
    LibraryNotFoundError,
)
from rainfusion_trt.operator.settings import AttentionSettings

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
    ),
]


@pytest.fixture
def recipe(tmp_path) -> EngineRecipe:
    """For `write_model`."""
    file = tmp_path / "recipe.yaml"
    file.write_text(PROFILE)
    return load_recipe(file)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cogvideox_for_two_architectures(exported, tmp_path, plugin_library, dtype):
    clip = {"frames": {"min": 9, "opt": 9, "max": 17}, "height": 64, "width": 96, "batch": 2}
    sizes = {"short": clip, "still": {**clip, "frames": 5}} if dtype == "float16" else {}
    recipe = EngineRecipe.model_validate(
        {
            "model": "cogvideox",
            "precision": dtype,
            "target": ["sm80", "sm120"],
            "sizes": sizes,
            "builder": {"workspace_gib": 1},
        }
    )
    folder = build_engine(
        exported / f"{dtype}.onnx", recipe=recipe, plugin=plugin_library, output=tmp_path / "e"
    )
    built = load_metadata(folder)
    assert built.plugin_layers == 2
    assert built.model == "cogvideox-5b" and built.config["num_layers"] == 2
    assert built.settings == AttentionSettings() and built.size == "9x64x96"
    assert built.precision == dtype and built.flavour == "tensorrt_rtx"
    assert built.targets == ("sm80", "sm120") and built.device is None
    inputs = {tensor.name: tensor for tensor in built.inputs}
    assert list(inputs)[-1] == "sparsity" and inputs["sparsity"].dtype == "float32"
    assert inputs["hidden_states"].dtype == dtype and inputs["timestep"].dtype == "float32"
    assert built.outputs[0].name == "sample" and built.outputs[0].dtype == dtype
    if sizes:
        assert built.profiles == ("short", "still")
        assert inputs["hidden_states"].shape == (-1, -1, 16, -1, -1)
        assert inputs["hidden_states"].profiles["short"].max == (2, 5, 16, 8, 12)
        assert inputs["rotary_cos"].profiles["still"].opt == (2 * 4 * 6, 64)
    else:
        assert built.profiles == () and inputs["hidden_states"].shape == (2, 3, 16, 8, 12)


WITHOUT_DIFFUSERS = """
import sys
from rainfusion_trt.engine import EngineRecipe, build_engine, load_metadata

onnx, plugin, output = sys.argv[1:]
size = {"frames": 9, "height": 64, "width": 96, "batch": 2}
recipe = EngineRecipe.model_validate(
    {"model": "cogvideox", "precision": "float16", "target": ["sm80"], "sizes": {"clip": size}}
)
folder = build_engine(onnx, recipe=recipe, plugin=plugin, output=output, progress=False)
assert load_metadata(folder).plugin_layers == 2
assert "diffusers" not in sys.modules
"""


def test_a_build_needs_no_diffusers(exported, tmp_path, plugin_library):
    """Importing it raises, in this process and in the one that builds."""
    (tmp_path / "diffusers.py").write_text("raise ImportError('not here')\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")])
    arguments = [exported / "float16.onnx", plugin_library, tmp_path / "e"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DIFFUSERS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_fixed_model_with_its_size_and_with_another(exported, tmp_path, plugin_library):
    def recipe(frames):
        size = {"frames": frames, "height": 64, "width": 96, "batch": 2}
        return EngineRecipe.model_validate(
            {
                "model": "cogvideox-5b",
                "precision": "bfloat16",
                "target": ["sm80"],
                "sizes": {"clip": size},
            }
        )

    onnx, output = exported / "bfloat16.onnx", tmp_path / "e"
    build_engine(onnx, recipe=recipe(9), plugin=plugin_library, output=output)
    assert load_metadata(output).inputs[0].profiles["clip"].fixed
    with pytest.raises(InvalidInputError, match="axis 1 is fixed at 3"):
        build_engine(onnx, recipe=recipe(13), plugin=plugin_library, output=output)
    assert load_metadata(output).profiles == ("clip",)


def test_builds_only_when_something_matters(tmp_path, plugin_library, recipe, caplog):
    caplog.set_level(logging.INFO, "rainfusion_trt")
    onnx = write_model(tmp_path / "m.onnx", external_data=True)

    def builds(profile=recipe, **options) -> bool:
        caplog.clear()
        folder = build_engine(onnx, recipe=profile, plugin=plugin_library, **options)
        assert folder == tmp_path / "m.engine"
        up_to_date = "up to date" in caplog.text
        assert up_to_date != ("plugin layers" in caplog.text)
        assert "may fail" not in caplog.text  # attributes that are left out have defaults
        return not up_to_date

    assert builds()
    assert not builds()
    assert builds(force=True)
    assert builds(target=["sm86"])
    assert builds()
    settings = BuilderSettings(optimization_level=1)
    assert builds(recipe.model_copy(update={"builder": settings}))
    assert builds()
    onnx.touch()
    assert not builds()
    weights = tmp_path / "m.onnx.data"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert builds()
    plan = tmp_path / "m.engine" / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert builds()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".m.engine")]


def test_failed_build_leaves_the_old_engine(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    folder = build_engine(onnx, recipe=recipe, plugin=plugin_library)
    before = load_metadata(folder)
    flags = recipe.model_copy(update={"builder": BuilderSettings(flags=("NO_SUCH_FLAG",))})
    with pytest.raises(EngineBuildError, match="no builder flag 'NO_SUCH_FLAG'"):
        build_engine(onnx, recipe=flags, plugin=plugin_library)
    assert load_metadata(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("m.engine", "m.onnx", "recipe.yaml")
    ]


def test_a_full_disk_is_told_alone(tmp_path, plugin_library, recipe):
    """By the smallest file that a process may write, which the worker inherits."""
    onnx = write_model(tmp_path / "m.onnx")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (onnx.stat().st_size, before[1]))
    try:
        with pytest.raises(EngineBuildError) as error:
            build_engine(onnx, recipe=recipe, plugin=plugin_library)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = "a file cannot be written: File too large (make room there, or write elsewhere)"
    assert str(error.value) == line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "recipe.yaml"]


def test_folder_that_is_no_engine_is_left_alone(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(InvalidInputError, match="not an engine folder"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, output=tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


def request(onnx, recipe, plugin, **changes) -> BuildRequest:
    """A request past the checks of `build_engine`, to see what the worker itself notices."""
    file = read_for_build(onnx)
    fields = {
        "onnx": onnx,
        "plugin": plugin,
        "plan": onnx.with_suffix(".plan"),
        "flavour": "tensorrt_rtx",
        "targets": ("sm80",),
        "profiles": resolve_profiles(recipe, file),
        "builder": recipe.builder,
        "attention_nodes": file.attention_nodes,
    }
    return BuildRequest(**{**fields, **changes})


def test_dense_body_instead_of_the_plugin_is_noticed(tmp_path, plugin_library, recipe):
    good = request(write_model(tmp_path / "m.onnx"), recipe, plugin_library)
    assert run_worker(good).plugin_layers == 2
    bare = write_model(tmp_path / "bare.onnx", plugin_attributes=False)
    with pytest.raises(EngineBuildError, match=r"only 0 of 2 .* dense body of attn_first"):
        run_worker(good.model_copy(update={"onnx": bare}))


def test_library_missing_or_foreign(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    with pytest.raises(LibraryNotFoundError, match=r"nowhere\.so"):
        build_engine(onnx, recipe=recipe, plugin=tmp_path / "nowhere.so")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(LibraryNotFoundError, match=r"text\.so"):
        build_engine(onnx, recipe=recipe, plugin=text)
    with pytest.raises(EngineBuildError, match=r"cannot load the plugin library .*text\.so"):
        run_worker(request(onnx, recipe, text))


def test_corrupt_model_reaches_nobody(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    good = request(onnx, recipe, plugin_library)
    onnx.write_bytes(onnx.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="not a readable ONNX file"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library)
    with pytest.raises(EngineBuildError, match="cannot parse"):
        run_worker(good)


def test_unknown_target(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    with pytest.raises(EngineBuildError, match="cannot build for sm90; it can for .*sm80"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, target="sm90")
    with pytest.raises(InvalidInputError, match="'hopper'"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, target="hopper")


def test_recipe_of_another_model_or_precision(tmp_path, plugin_library, recipe):
    properties = {"rainfusion.model": "cogvideox-5b", "rainfusion.dtype": "float16"}
    onnx = write_model(tmp_path / "m.onnx", properties=properties)
    other = recipe.model_copy(update={"model": "cogvideox-2b"})
    with pytest.raises(InvalidInputError, match="holds cogvideox-5b, .* for cogvideox-2b"):
        build_engine(onnx, recipe=other, plugin=plugin_library)
    other = recipe.model_copy(update={"precision": "bfloat16"})
    with pytest.raises(InvalidInputError, match="exported in float16, .* bfloat16"):
        build_engine(onnx, recipe=other, plugin=plugin_library)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_native_build_needs_a_gpu(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    with pytest.raises(BackendUnavailableError, match="--target sm89"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, target="native")


@pytest.mark.skipif("tensorrt" in available_flavours(), reason="TensorRT is installed")
def test_flavour_that_is_not_installed(tmp_path, plugin_library, recipe):
    onnx = write_model(tmp_path / "m.onnx")
    with pytest.raises(BackendUnavailableError, match="tensorrt is not installed"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, flavour="tensorrt")


def test_tensorrt_proper_builds_for_its_own_gpu_only(tmp_path, plugin_library, recipe, monkeypatch):
    from rainfusion_trt.engine import target
    from rainfusion_trt.engine.flavour import load_tensorrt

    proper = dataclasses.replace(load_tensorrt("tensorrt_rtx"), name="tensorrt", version="11.4.0")
    monkeypatch.setattr(target, "load_tensorrt", lambda flavour: proper)
    onnx = write_model(tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError, match="builds for the GPU of this machine only"):
        build_engine(onnx, recipe=recipe, plugin=plugin_library, flavour="tensorrt")


def test_worker_finds_the_package_from_anywhere(tmp_path, plugin_library, recipe, monkeypatch):
    onnx = write_model(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run_worker(request(onnx, recipe, plugin_library)).plugin_layers == 2
    assert "PYTHONPATH" not in os.environ
