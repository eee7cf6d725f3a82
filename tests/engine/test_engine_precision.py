"""Engines of 8 bits: profiles, what has no kernels, metadata, and a build by TensorRT for RTX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from helpers.engine_folders import engine_metadata
from rainfusion_trt.engine import build_engine, load_metadata
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.metadata import TensorRecord
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe, ShapeRange
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.engine.target import check_graph, check_kernels
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.graph_file import GraphTensor
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.native import Precision, load_library
from rainfusion_trt.operator.settings import AttentionSettings

CLIP = {"frames": 9, "height": 64, "width": 96, "batch": 1}
BITS = ShapeRange(min=(8,), opt=(8,), max=(16,))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A tiny Wan of 8 bits and of one size."""
    model = get_model("wan2.1-14b")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float16)
    path = tmp_path_factory.mktemp("precision") / "wan.onnx"
    settings = AttentionSettings(precision="8bit")
    export_model(model, transformer, model.tiny_size, output=path, settings=settings)
    return path


@pytest.fixture(scope="module")
def library(plugin_library):
    return load_library(plugin_library)


def recipe(**more) -> EngineRecipe:
    common = {"model": "wan2.1-14b", "precision": "float16", "target": ["sm90"]}
    return EngineRecipe.model_validate({**common, **more})


def test_every_profile_has_both_precisions(file):
    known = read_for_build(file)
    shapes = {"own": {"timestep": [1]}}
    profiles = resolve_profiles(recipe(sizes={"clip": CLIP}, shapes=shapes), known)
    assert [profile["bits"] for profile in profiles.values()] == [BITS, BITS]
    (only,) = resolve_profiles(recipe(), known).values()  # nothing else varies
    assert only["bits"] == BITS and only["hidden_states"].fixed
    with pytest.raises(InvalidInputError, match="gives a shape for 'bits', which has those of"):
        resolve_profiles(recipe(shapes={"own": {"bits": [8]}}), known)


def has_kernels(library, target):
    try:
        library.check_precision(Precision.BITS_8, *divmod(int(target.removeprefix("sm")), 10))
    except UnsupportedError:
        return False
    return True


def test_what_has_no_kernel_is_refused(file, library):
    known = read_for_build(file)
    check_graph(library, known)
    query = GraphTensor("q", "float16", (1, 2, 72, 96))
    wide = dataclasses.replace(known, queries=(query,))
    with pytest.raises(UnsupportedError, match="head size 96 has no 8-bit kernel; export .*16bit"):
        check_graph(library, wide)
    check_graph(library, dataclasses.replace(wide, eight_bit=False))
    with pytest.raises(UnsupportedError, match="target sm80: .* it needs 8.9 or newer"):
        check_kernels(library, ("sm80",), eight_bit=True)


class OfOtherGpus:
    """A library that was built for none of the targets."""

    def check_device(self, major, minor):
        raise UnsupportedError(f"a GPU of {major}.{minor} cannot run this build: build-plugin")

    def check_precision(self, precision, major, minor):
        raise UnsupportedError(f"{precision.name} has no kernel for {major}.{minor}")


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_library_of_other_gpus_is_a_warning(eight_bit, caplog):
    """Another build of it can run the engine."""
    check_kernels(OfOtherGpus(), ("sm89", "sm120"), eight_bit=eight_bit)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "sm120 but not run: a GPU of 12.0 cannot" in lines[1]


def test_a_gpu_without_8_bits_has_them_in_no_library():
    check_kernels(OfOtherGpus(), ("sm86",))
    with pytest.raises(UnsupportedError, match="target sm86: BITS_8 has no kernel for 8.6"):
        check_kernels(OfOtherGpus(), ("sm86",), eight_bit=True)


def test_an_engine_of_one_size_is_of_one_size():
    inputs = (
        TensorRecord(name="x", dtype="float16", shape=(2, 8), profiles={}),
        TensorRecord(name="bits", dtype="float32", shape=(-1,), profiles={"tiny": BITS}),
    )
    settings = {"method": "piecewise", "precision": "8bit"}
    account = engine_metadata(inputs=inputs, settings=settings).account
    assert not account.dynamic and account.settings.precision == "8bit"


@pytest.mark.tensorrt
@pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
)
def test_tensorrt_builds_it(file, plugin_library, library, tmp_path):
    """For GPUs that have the kernels, and for no others."""
    arguments = {"recipe": recipe(), "plugin": plugin_library}
    with pytest.raises(UnsupportedError, match="target sm80: precision 8bit has no kernel"):
        build_engine(file, output=tmp_path / "refused", target="sm80", **arguments)
    assert not list(tmp_path.iterdir())
    target = next((name for name in ("sm89", "sm120") if has_kernels(library, name)), None)
    if target is None:
        pytest.skip(f"a library for other GPUs: {library.build_info}")
    folder = build_engine(file, output=tmp_path / "e", target=target, **arguments)
    built = load_metadata(folder)
    bits = next(tensor for tensor in built.inputs if tensor.name == "bits")
    assert bits.shape == (-1,) and bits.profiles["clip"] == BITS
    assert built.account.settings.precision == "8bit" and not built.account.dynamic
    assert built.plugin_layers == 1 and built.precision == "float16"
