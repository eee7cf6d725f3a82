"""What an export of one size says where the model's recipe needs varying shapes."""

from __future__ import annotations

import pytest

from rainfusion_trt.engine.recipe import EngineRecipe, load_recipe
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import request

SIZE = {"frames": 49, "height": 480, "width": 720, "batch": 2}


class WorkBeginsError(Exception):
    """Raised as the weights would be made."""


@pytest.mark.parametrize(
    ("model", "dynamic", "config", "said"),
    [
        ("wan2.1-14b", False, "full", "engines/wan2.1-14b.yaml, which has 720p, 480p: export with"),
        ("wan2.1-14b", True, "full", None),
        ("wan2.1-14b", False, "tiny", None),
        ("cogvideox-5b", False, "full", None),  # whose recipe has one size
        ("kandinsky5-lite", False, "full", "kandinsky5-lite.yaml, which has 512p: export with"),
    ],
)
def test_before_any_weights_are_made(model, dynamic, config, said, tmp_path, caplog, monkeypatch):
    def begin(*_):
        raise WorkBeginsError

    monkeypatch.setattr(request.WeightRequest, "transformer", begin)
    weights = request.WeightRequest(None, (), True, False, config, None, 0, "cpu")
    job = request.model_job(
        model, weights, (None, None, None), batch=None, dtype=None, dynamic=dynamic
    )
    assert not caplog.records
    with pytest.raises(InvalidInputError):  # nothing more is said of what cannot be
        job.run(output=tmp_path)
    assert not caplog.records
    with pytest.raises(WorkBeginsError):
        job.run(output=tmp_path / "x.onnx")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (said is not None)
    if said is not None:
        assert said in lines[0] and "--dynamic" in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize(
    ("changes", "varies"),
    [
        ({"sizes": {"a": SIZE}}, False),
        ({"sizes": {"a": SIZE, "b": {**SIZE, "frames": 17}}}, True),
        ({"sizes": {"a": {**SIZE, "frames": {"min": 17, "opt": 49, "max": 49}}}}, True),
        ({"sizes": {"a": {**SIZE, "batch": {"min": 1, "opt": 2, "max": 2}}}}, True),
        ({"sizes": {"a": {**SIZE, "condition_frames": 1}}}, True),
        ({"shapes": {"a": {"x": [2, 3], "y": [1]}}}, False),
        ({"shapes": {"a": {"x": {"min": [1, 3], "opt": [2, 3], "max": [2, 3]}}}}, True),
        ({}, False),
    ],
    ids=str,
)
def test_what_needs_varying_shapes(changes, varies):
    recipe = EngineRecipe(model="cogvideox-5b", precision="float16", **changes)
    assert recipe.varies == varies


def test_recipes_of_one_size_are_of_the_size_that_is_exported():
    """So that the file of no option is one for the recipe, or somebody is told."""
    from rainfusion_trt.models import get_model, model_names

    for name in model_names():
        recipe = load_recipe(name)
        if not recipe.varies:
            (size,) = recipe.sizes.values()
            default = get_model(name).defaults.size
            assert (size.frames.opt, size.height.opt, size.width.opt) == (
                default.frames,
                default.height,
                default.width,
            ), name
