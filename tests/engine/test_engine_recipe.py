"""Recipes: valid ones, and the errors of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rainfusion_trt.engine.recipe import EngineRecipe, load_recipe
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, get_model

RECIPES = sorted((Path(__file__).parents[2] / "engines").glob("*.yaml"))


def recipe_of(tmp_path: Path, text: str) -> EngineRecipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load_recipe(file)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.model is not None
    assert recipe.sizes or recipe.shapes  # shapes alone where the text has no usual length


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_sizes_are_sizes_of_the_model(path):
    recipe = load_recipe(path)
    model = get_model(recipe.model)
    for size in recipe.sizes.values():
        axes = size.frames, size.height, size.width, size.batch
        for bound in ("min", "opt", "max"):
            *clip, batch = (getattr(axis, bound) for axis in axes)
            extents = model.extents(model.config(), VideoSize(*clip), batch)
            extents = model.with_conditions(extents, getattr(size.condition_frames, bound))
            assert extents["batch"] == batch


def test_shipped_recipes_are_found():
    assert {path.stem for path in RECIPES} >= {"cogvideox-5b", "cogvideox-2b", "cogvideox1.5-5b"}


def test_numbers_and_lists_stand_for_fixed_ranges(tmp_path):
    recipe = recipe_of(
        tmp_path,
        "precision: float16\n"
        "model: cogvideox-5b\n"
        "target: sm80\n"
        "sizes: {a: {frames: {min: 9, opt: 17, max: 49}, height: 480, width: 720, batch: 2}}\n"
        "shapes: {b: {x: [1, 2], y: {min: [1], opt: [2], max: [3]}}}\n",
    )
    assert recipe.target == ("sm80",)
    assert recipe.sizes["a"].frames.opt == 17
    assert recipe.sizes["a"].height.min == recipe.sizes["a"].height.max == 480
    assert recipe.shapes["b"]["x"].fixed and recipe.shapes["b"]["x"].opt == (1, 2)
    assert not recipe.shapes["b"]["y"].fixed


SIZE = "{frames: 9, height: 64, width: 96, batch: 1}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("precision: float32", ["precision", "float32", "bfloat16"]),
        ("target: native", ["precision is missing: give it"]),
        (
            "precision: float16\nprecison: 1",
            ["precison is no field here: leave it out, or take one of model, precision,"],
        ),
        ("precision: float16\ntarget: hopper", ["'hopper'", "sm80"]),
        ("precision: float16\ntarget: []", ["target is empty"]),
        ("precision: float16\ntarget: [sm80, sm80]", ["twice"]),
        (
            "precision: float16\nbuilder: {optimization_level: 7}",
            ["builder.optimization_level=7 must be 5 or less"],
        ),
        (
            "precision: float16\nbuilder: {workspace_gib: -1}",
            ["builder.workspace_gib=-1 must be more than 0"],
        ),
        (f"precision: float16\nsizes: {{a: {SIZE}}}", ["sizes", "model"]),
        (
            "precision: float16\nmodel: m\nsizes: {a: {frames: 9, height: 64, batch: 1}}",
            ["sizes.a.width is missing: give it"],
        ),
        (
            "precision: float16\nmodel: m\nsizes: {a: {frames: {min: 9, opt: 5, max: 9}, "
            "height: 64, width: 96, batch: 1}}",
            ["sizes.a.frames", "9, 5, 9"],
        ),
        (
            f"precision: float16\nmodel: m\nsizes: {{a: {SIZE[:-1]}, condition_frames: -1}}}}",
            ["sizes.a.condition_frames=-1 must be 0 or more"],
        ),
        (
            "precision: float16\nshapes: {a: {x: {min: [2, 9], opt: [2, 9], max: [2, 5]}}}",
            ["shapes.a.x", "2x9", "2x5"],
        ),
        (
            "precision: float16\nshapes: {a: {x: {min: [2], opt: [2, 9], max: [2, 9]}}}",
            ["shapes.a.x", "rank"],
        ),
        ("precision: float16\nshapes: {a: {x: [0, 4]}}", ["shapes.a.x", "0x4", "below 1"]),
        (
            f"precision: float16\nmodel: m\nsizes: {{a: {SIZE}}}\nshapes: {{a: {{x: [1]}}}}",
            ["'a'", "sizes", "shapes"],
        ),
        ("precision: float16\ntarget: 5", ["target=5 must be 'native' or a list"]),
        ("precision: float16\ntarget: [80]", ["recipe.yaml: target.0=80 must be a text"]),
        (
            "precision: float16\nmodel: m\nsizes: {a: {frames: x, height: 0, wdth: 1, batch: 1}}",
            [
                "sizes.a.frames='x': must be an integer, or min, opt and max; ",
                "sizes.a.height=0 must be 1 or more; sizes.a.width is missing: give it; and 1 more",
            ],
        ),
        (
            "precision: float16\nshapes: {a: {x: 3, y: [1.5]}}",
            ["shapes.a.x=3: must be a list of extents", "shapes.a.y.min.0=1.5 must be an integer"],
        ),
        ("precision: float16\nsizes: {1: {}}", ["the name of sizes.1 must be a text"]),
        ("precision: float16\nshapes: {'': {x: [1]}}", ["the name of shapes.'' must be a text"]),
        ("- precision", ["must hold keys", "list"]),
        ("precision: [float16", ["not valid YAML"]),
    ],
)
def test_error_names_file_key_and_value(tmp_path, text, words):
    with pytest.raises(InvalidInputError) as error:
        recipe_of(tmp_path, text)
    for word in ["recipe.yaml", *words]:
        assert word in str(error.value)
    assert str(error.value).isprintable() or "not valid YAML" in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InvalidInputError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
