"""Engines that several GPUs share: profiles, metadata, and a build by TensorRT for RTX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from helpers.engine_models import write_model
from rainfusion_trt.engine import build_engine, load_metadata
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe, with_gpus
from rainfusion_trt.engine.shapes import gpus_of, resolve_profiles
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import get_model

CLIP = {"frames": 9, "height": 64, "width": 96, "batch": 1}  # 3x4x6 = 72 tokens; 3 heads


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A tiny Wan for several GPUs."""
    model = get_model("wan2.1-14b")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float16)
    path = tmp_path_factory.mktemp("shared") / "wan.onnx"
    export_model(model, transformer, model.tiny_size, output=path, parallel=True)
    return path


def recipe(**more) -> EngineRecipe:
    common = {"model": "wan2.1-14b", "precision": "float16", "target": ["sm80"]}
    return EngineRecipe.model_validate({**common, "sizes": {"clip": CLIP}, **more})


def part_of(recipe: EngineRecipe, shared: Path) -> tuple[int, int, int]:
    """The smallest, usual and largest part of its only profile."""
    (shapes,) = resolve_profiles(recipe, read_for_build(shared)).values()
    return tuple(getattr(shapes["part"], bound)[0] for bound in ("min", "opt", "max"))


def test_a_profile_has_the_parts_of_its_gpus(shared):
    assert part_of(recipe(), shared) == (24, 36, 36)  # 2 to 3, as there are 3 heads
    assert part_of(recipe(gpus={"min": 1, "opt": 3, "max": 3}), shared) == (24, 24, 72)
    file = read_for_build(shared)
    many = dataclasses.replace(
        file, account=file.account.model_copy(update={"config": {"num_attention_heads": 40}})
    )
    assert gpus_of(recipe(), many).max == 8


def test_how_many_gpus_can_be_said_at_the_build():
    assert with_gpus(recipe(), None).gpus is None
    assert with_gpus(recipe(gpus=2), 4).gpus.max == 4
    found = with_gpus(recipe(), "2-8").gpus
    assert (found.min, found.opt, found.max) == (2, 2, 8)
    for wrong in ("0", "8-2", "two", "2-"):
        with pytest.raises(InvalidInputError, match=f"gpus={wrong} is no number of GPUs"):
            with_gpus(recipe(), wrong)


def test_gpus_that_do_not_fit_the_file(shared, tmp_path):
    with pytest.raises(InvalidInputError, match="gpus: 4 was asked for, .* the 3 heads of"):
        part_of(recipe(gpus=4), shared)
    with pytest.raises(InvalidInputError, match=r"gpus: 2 to 8 was .* export it with --parallel"):
        gpus_of(with_gpus(recipe(), "2-8"), read_for_build(write_model(tmp_path / "m.onnx")))


def test_a_file_of_several_gpus_in_a_part_of_its_nodes_is_refused(shared, tmp_path):
    model = onnx.load(shared)
    (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    (flag,) = [a for a in node.attribute if a.name == "parallel"]
    node.attribute.remove(flag)
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(InvalidInputError, match="for several GPUs in a part of its nodes alone"):
        read_for_build(tmp_path / "half.onnx")
    model = onnx.load(shared)
    split = next(n for n in model.graph.node if n.op_type == "RainFusionSplit")
    del split.attribute[:]
    onnx.save(model, tmp_path / "body.onnx")
    with pytest.raises(InvalidInputError, match="RainFusionSplit.* take its dense body instead"):
        read_for_build(tmp_path / "body.onnx")


@pytest.mark.tensorrt
@pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
)
def test_tensorrt_builds_it(shared, plugin_library, tmp_path):
    """TensorRT finds every shape from the part, and the plugins of all nodes."""
    folder = build_engine(
        shared, recipe=recipe(), plugin=plugin_library, output=tmp_path / "e", gpus="2-3"
    )
    built = load_metadata(folder)
    assert (built.gpus.min, built.gpus.max) == (2, 3)
    assert built.account.parallel and not built.account.dynamic
    part = next(tensor for tensor in built.inputs if tensor.name == "part")
    assert part.shape == (-1,) and part.profiles["clip"].max == (36,)
    assert built.outputs[0].shape == (1, 16, 3, 8, 12)
    assert built.plugin_layers == 1
