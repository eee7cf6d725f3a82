"""Inputs of an engine: optimisation profiles, compatibility, and loading without a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from rainfusion_trt.engine.metadata import (
    EngineMetadata,
    PluginRecord,
    TensorRecord,
    load_metadata,
    save_metadata,
)
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange
from rainfusion_trt.errors import BackendUnavailableError, EngineLoadError, InvalidInputError
from rainfusion_trt.runtime.base import check_feed
from rainfusion_trt.runtime.engine_check import check_engine
from rainfusion_trt.runtime.engine_io import profile_infos, select_profile, tensor_infos
from rainfusion_trt.runtime.tensorrt import TensorRTBackend, check_compatible

PLAN = b"no engine at all"


def shapes(low, opt, high) -> ShapeRange:
    return ShapeRange(min=low, opt=opt, max=high)


def metadata(**changes) -> EngineMetadata:
    """An engine for x [B, T, 8] with a small and a large profile that overlap."""
    small, large = (
        shapes((1, 4, 8), (2, 8, 8), (2, 16, 8)),
        shapes((2, 8, 8), (2, 32, 8), (2, 32, 8)),
    )
    one = shapes((1,), (1,), (1,))
    fields = {
        "model": None,
        "config": {},
        "size": None,
        "settings": {},
        "precision": "bfloat16",
        "flavour": "tensorrt_rtx",
        "version": "1.7.1.116",
        "targets": ("sm80", "sm120"),
        "device": None,
        "profiles": ("small", "large"),
        "builder": BuilderSettings(),
        "inputs": (
            TensorRecord(
                name="x",
                dtype="bfloat16",
                shape=(-1, -1, 8),
                profiles={"small": small, "large": large},
            ),
            TensorRecord(
                name="sparsity",
                dtype="float32",
                shape=(1,),
                profiles={"small": one, "large": one},
            ),
        ),
        "outputs": (TensorRecord(name="sample", dtype="bfloat16", shape=(-1, -1, 8)),),
        "plugin": PluginRecord(file="p.so", sha256="0" * 64, build="0.1.0"),
        "plugin_layers": 1,
        "onnx": "m.onnx",
        "onnx_sha256": "1" * 64,
        "onnx_files": (),
        "key": "2" * 64,
        "engine_size": len(PLAN),
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "date": "2026-01-01T00:00:00+00:00",
        "build_seconds": 1.0,
        "command": "",
    }
    return EngineMetadata(**{**fields, **changes})


def test_bounds_span_all_profiles():
    infos = tensor_infos(metadata().inputs)
    assert infos["x"].dtype is torch.bfloat16
    assert infos["x"].min_shape == (1, 4, 8) and infos["x"].max_shape == (2, 32, 8)
    assert infos["sparsity"].dtype is torch.float32
    assert tensor_infos(metadata().outputs)["sample"].max_shape == (None, None, 8)


def test_bounds_of_each_profile():
    small, large = profile_infos(metadata())
    assert small["x"].dtype is torch.bfloat16
    assert (small["x"].min_shape, small["x"].max_shape) == ((1, 4, 8), (2, 16, 8))
    assert (large["x"].min_shape, large["x"].max_shape) == ((2, 8, 8), (2, 32, 8))
    assert small["sparsity"].max_shape == large["sparsity"].max_shape == (1,)
    record = TensorRecord(name="timestep", dtype="int64", shape=(2,))
    (only,) = profile_infos(metadata(profiles=(), inputs=(record,)))
    assert only["timestep"].min_shape == only["timestep"].max_shape == (2,)


def test_bounds_of_a_fixed_engine():
    record = TensorRecord(name="timestep", dtype="int64", shape=(2,))
    info = tensor_infos([record])["timestep"]
    assert info.dtype is torch.int64 and info.accepts((2,)) and not info.accepts((1,))


@pytest.mark.parametrize(
    ("shape", "profile"),
    [
        ((1, 4, 8), 0),
        ((2, 8, 8), 0),  # both serve it, the small one is tuned for it
        ((2, 16, 8), 0),
        ((2, 17, 8), 1),
        ((2, 32, 8), 1),
    ],
)
def test_profile_selection(shape, profile):
    assert select_profile(metadata(), {"x": shape, "sparsity": (1,)}) == profile


def test_tuned_profile_comes_before_an_earlier_one():
    engine = metadata()
    wide, tuned = shapes((1, 1, 8), (1, 1, 8), (2, 64, 8)), shapes((2, 8, 8), (2, 8, 8), (2, 8, 8))
    x = engine.inputs[0].model_copy(update={"profiles": {"small": wide, "large": tuned}})
    engine = engine.model_copy(update={"inputs": (x, engine.inputs[1])})
    assert select_profile(engine, {"x": (2, 8, 8), "sparsity": (1,)}) == 1
    assert select_profile(engine, {"x": (2, 9, 8), "sparsity": (1,)}) == 0


def test_a_tuned_profile_is_so_in_both_precisions():
    engine = metadata()
    wide, tuned = shapes((1, 1, 8), (1, 1, 8), (2, 64, 8)), shapes((2, 8, 8), (2, 8, 8), (2, 8, 8))
    x = engine.inputs[0].model_copy(update={"profiles": {"small": wide, "large": tuned}})
    both = dict.fromkeys(("small", "large"), shapes((8,), (8,), (16,)))
    bits = TensorRecord(name="bits", dtype="float32", shape=(-1,), profiles=both)
    engine = engine.model_copy(update={"inputs": (x, engine.inputs[1], bits)})
    for length in (8, 16):
        given = {"x": (2, 8, 8), "sparsity": (1,), "bits": (length,)}
        assert select_profile(engine, given) == 1


@pytest.mark.parametrize("shape", [(1, 17, 8), (3, 8, 8), (2, 8), (2, 3, 8)])
def test_shape_outside_every_profile(shape):
    with pytest.raises(InvalidInputError) as error:
        select_profile(metadata(), {"x": shape, "sparsity": (1,)})
    given = "x".join(map(str, shape))
    for words in (f"x {given}", "'small': x 1x4x8 to 2x16x8", "'large'", "build again"):
        assert words in str(error.value)


def test_fixed_engine_has_one_profile():
    assert select_profile(metadata(profiles=()), {}) == 0


def test_feed_is_checked_against_the_engine():
    infos = tensor_infos(metadata().inputs)
    backend = SimpleNamespace(name="tensorrt_rtx", device=torch.device("cpu"), inputs=infos)
    x, s = torch.zeros(2, 8, 8, dtype=torch.bfloat16), torch.zeros(1)
    check_feed(backend, {"x": x, "sparsity": s})
    for feed, words in [
        ({"x": x.half(), "sparsity": s}, "float16"),
        ({"x": x[:, :3], "sparsity": s}, "4..32"),
        ({"sparsity": s}, "missing x"),
        ({"x": x, "sparsity": s, "y": s}, "unknown y"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            check_feed(backend, feed)


def test_an_input_of_fixed_shape_may_leave_out_its_profiles():
    engine = metadata()
    fixed = TensorRecord(name="sparsity", dtype="float32", shape=(1,))
    engine = engine.model_copy(update={"inputs": (engine.inputs[0], fixed)})
    assert select_profile(engine, {"x": (2, 32, 8), "sparsity": (1,)}) == 1
    with pytest.raises(InvalidInputError, match="no optimisation profile"):
        select_profile(engine, {"x": (2, 32, 8), "sparsity": (2,)})


# -- does the engine fit its metadata? -------------------------------------------------------------


class Engine:
    """TensorRT's ICudaEngine, as `metadata()` describes it, with changes."""

    num_optimization_profiles = 2
    tensors: ClassVar = {
        "x": ("INPUT", "BF16", (-1, -1, 8)),
        "sparsity": ("INPUT", "FLOAT", (1,)),
        "sample": ("OUTPUT", "BF16", (-1, -1, 8)),
    }
    profiles: ClassVar = [
        ((1, 4, 8), (2, 8, 8), (2, 16, 8)),
        ((2, 8, 8), (2, 32, 8), (2, 32, 8)),
    ]

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_shape(self, name):
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name, index):
        assert name == "x"
        return [list(shape) for shape in self.profiles[index]]


def test_an_engine_and_its_own_metadata():
    check_engine(Engine(), metadata(), Path("engine.plan"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensors": {**Engine.tensors, "y": Engine.tensors["x"]}}, "inputs and outputs"),
        ({"num_optimization_profiles": 1}, "optimisation profiles 1, its metadata says 2"),
        (
            {"tensors": {**Engine.tensors, "x": ("INPUT", "HALF", (-1, -1, 8))}},
            "x as float16, its metadata says bfloat16",
        ),
        (
            {"tensors": {**Engine.tensors, "sample": ("OUTPUT", "FP8", (-1, -1, 8))}},
            "sample as fp8, its metadata says bfloat16",
        ),
        (
            {"tensors": {**Engine.tensors, "x": ("OUTPUT", "BF16", (-1, -1, 8))}},
            "x as output, its metadata says input",
        ),
        ({"tensors": {**Engine.tensors, "x": ("INPUT", "BF16", (-1, -1, 9))}}, "x of shape"),
        ({"tensors": {**Engine.tensors, "x": ("INPUT", "BF16", (-1, 8))}}, "x of shape"),
        ({"profiles": Engine.profiles[::-1]}, "x in profile 'small' as"),
    ],
)
def test_an_engine_and_the_metadata_of_another(changes, words):
    engine = Engine()
    vars(engine).update(changes)
    with pytest.raises(EngineLoadError, match=words) as error:
        check_engine(engine, metadata(), Path("engine.plan"))
    assert "build the engine again" in str(error.value)


# -- is this the right TensorRT and GPU? -----------------------------------------------------------


def flavour(name="tensorrt_rtx", version="1.7.1.116"):
    return SimpleNamespace(name=name, version=version)


def test_same_release_and_a_target_of_the_engine():
    check_compatible(metadata(), flavour(), (8, 0))
    check_compatible(metadata(), flavour(version="1.7.1.200"), (12, 0))


@pytest.mark.parametrize(
    ("installed", "capability", "words"),
    [
        (flavour("tensorrt", "11.4.0"), (8, 0), r"built by tensorrt_rtx 1\.7\.1\.116, installed"),
        (flavour(version="1.6.1.120"), (8, 0), r"installed is tensorrt_rtx 1\.6\.1\.120"),
        (flavour(), (7, 5), "built for sm80, sm120, this GPU is sm75"),
    ],
)
def test_foreign_engine(installed, capability, words):
    with pytest.raises(EngineLoadError, match=words):
        check_compatible(metadata(), installed, capability)


def test_tensorrt_engine_is_for_one_architecture():
    engine = metadata(flavour="tensorrt", version="11.4.0.1", targets=("sm90",))
    check_compatible(engine, flavour("tensorrt", "11.4.0.1"), (9, 0))
    with pytest.raises(EngineLoadError, match="built for sm90, this GPU is sm100"):
        check_compatible(engine, flavour("tensorrt", "11.4.0.1"), (10, 0))


def test_architecture_between_the_targets_is_said(caplog):
    check_compatible(metadata(), flavour(), (9, 0))
    assert "this GPU is sm90" in caplog.text


# -- loading ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engine.plan").write_bytes(PLAN)
    save_metadata(tmp_path, metadata())
    assert load_metadata(tmp_path)
    return tmp_path


def test_damaged_folder_is_refused_before_anything_else(folder):
    (folder / "engine.plan").write_bytes(PLAN[:-2])
    with pytest.raises(EngineLoadError, match="damaged"):
        TensorRTBackend(folder)
    with pytest.raises(EngineLoadError, match="not an engine folder"):
        TensorRTBackend(folder / "nowhere")


def test_engine_does_not_run_on_the_cpu(folder):
    with pytest.raises(BackendUnavailableError, match="NVIDIA GPU only, got device cpu"):
        TensorRTBackend(folder, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(folder):
    with pytest.raises(BackendUnavailableError, match="torch sees no GPU"):
        TensorRTBackend(folder)
