"""docs/models.md says of every model what was tested, and these are the tests that say so."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rainfusion_trt.model_list import list_models
from rainfusion_trt.models import get_model, model_names

ROOT = Path(__file__).parents[2]
COLUMNS = ("graph", "other sizes", "engine")
ON_GPU = "on the GPU"

_ALLEGRO = "tests/export/test_export_allegro.py"
_COGVIDEOX = "tests/export/test_exported_models.py"
_HUNYUAN = "tests/export/test_export_hunyuanvideo.py"
_HUNYUAN_15 = "tests/export/test_export_hunyuanvideo15.py"
_IMAGE = "tests/export/test_export_image_to_video.py"
_LATER = "tests/export/test_export_later_models.py"
_LTX = "tests/export/test_export_ltx.py"
_MINIMAX = "tests/export/test_export_minimax.py"
_WAN = "tests/export/test_export_wan.py"
_VARIANTS = "tests/export/test_export_wan_variants.py"
_EXPERTS = "tests/models/test_wan_experts.py"
_FIXED = "test_fixed_export_equals_pytorch"
_UNSEEN = "test_dynamic_export_equals_pytorch_at_unseen_sizes"
_ONE_GRAPH = "test_one_graph_equals_pytorch_at_unseen_sizes"
_EXPORTED = "test_exported_graph_equals_pytorch"
_BUILT = "test_tensorrt_builds_it_with_every_attention_a_plugin_layer"
_BY_HAND = ("skyreels-v2-14b", "skyreels-v2-i2v-14b", "cosmos-predict2.5-2b", "kandinsky5-lite")

# Column -> model -> file and function of the test that says "test" or "rehearsal" there.
TESTS: dict[str, dict[str, tuple[str, str]]] = {
    "graph": {
        **dict.fromkeys(("cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"), (_COGVIDEOX, _FIXED)),
        "cogvideox-5b-i2v": (_IMAGE, "test_a_learned_position_table_is_in_the_graph"),
        **dict.fromkeys(("cogvideox1.5-5b-i2v", "hunyuanvideo-i2v-33ch"), (_IMAGE, _FIXED)),
        "hunyuanvideo": (_HUNYUAN, _FIXED),
        "hunyuanvideo-1.5": (_HUNYUAN_15, "test_dynamic_export_equals_pytorch"),
        **dict.fromkeys(("allegro", "opensoraplan-1.2"), (_ALLEGRO, _FIXED)),
        "wan2.1-1.3b": (_WAN, _FIXED),
        "wan2.2-a14b": (_EXPERTS, "test_two_files_in_onnx_runtime"),
        **dict.fromkeys(
            ("skyreels-v2-df-1.3b", "skyreels-v2-i2v-14b"),
            ("tests/models/test_skyreels.py", _EXPORTED),
        ),
        "cosmos-predict2.5-2b": ("tests/models/test_cosmos.py", _EXPORTED),
        "kandinsky5-lite": ("tests/models/test_kandinsky.py", _EXPORTED),
    },
    "other sizes": {
        "cogvideox-5b": (_COGVIDEOX, _UNSEEN),
        "cogvideox1.5-5b": (_COGVIDEOX, "test_dynamic_export_with_patches_in_time"),
        "hunyuanvideo": (_HUNYUAN, _UNSEEN),
        "hunyuanvideo-i2v": (_IMAGE, _UNSEEN),
        "hunyuanvideo-1.5-i2v-step-distilled": (_IMAGE, _UNSEEN),
        "hunyuanvideo-1.5": (_HUNYUAN_15, "test_dynamic_export_equals_pytorch"),
        **dict.fromkeys(("ltx-video-2b", "ltx-2.3"), (_LTX, _ONE_GRAPH)),
        "minimax-h3": (_MINIMAX, _ONE_GRAPH),
        **dict.fromkeys(_BY_HAND, (_LATER, _ONE_GRAPH)),
        "opensoraplan-1.2": (_ALLEGRO, _UNSEEN),
        **dict.fromkeys(("wan2.1-14b", "wan2.2-ti2v-5b"), (_WAN, _UNSEEN)),
        **dict.fromkeys(
            ("wan2.1-flf2v-14b", "wan2.1-vace-1.3b", "wan2.2-animate-14b"), (_VARIANTS, _ONE_GRAPH)
        ),
    },
    "engine": {
        "cogvideox-5b": (
            "tests/engine/test_engine_build.py",
            "test_cogvideox_for_two_architectures",
        ),
        "hunyuanvideo": (_HUNYUAN, _BUILT),
        "hunyuanvideo-1.5": (_HUNYUAN_15, _BUILT),
        **dict.fromkeys(("hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v"), (_IMAGE, _BUILT)),
        **dict.fromkeys(("ltx-video-2b", "ltx-2.3"), (_LTX, _BUILT)),
        "minimax-h3": (_MINIMAX, _BUILT),
        **dict.fromkeys(_BY_HAND, (_LATER, _BUILT)),
        "opensoraplan-1.2": (_ALLEGRO, "test_tensorrt_builds_an_engine_of_two_sizes"),
        **dict.fromkeys(("wan2.1-1.3b", "wan2.1-14b", "wan2.2-ti2v-5b"), (_WAN, _BUILT)),
        **dict.fromkeys(
            ("wan2.1-flf2v-14b", "wan2.1-vace-1.3b", "wan2.2-animate-14b"), (_VARIANTS, _BUILT)
        ),
        "wan2.2-a14b": (_EXPERTS, "test_an_engine_says_which_one_and_what_was_added"),
    },
}
# A graph that equals PyTorch at other sizes does at that of its export.
TESTS["graph"] = {**TESTS["other sizes"], **TESTS["graph"]}


def rows() -> dict[str, dict[str, str]]:
    """Model -> column -> cell."""
    lines = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| registry name | graph | other sizes | engine | beside | on the GPU |")
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.strip("`")] = dict(zip((*COLUMNS, "beside", ON_GPU), cells, strict=True))
    return found


def test_every_model_has_a_row():
    assert list(rows()) == model_names()


@pytest.mark.parametrize("column", COLUMNS)
def test_what_was_tested_is_said_and_nothing_else(column):
    table = rows()
    said = {name for name, row in table.items() if row[column] in ("test", "rehearsal")}
    assert said == set(TESTS[column])
    for name, row in table.items():
        cell = row[column]
        if cell.startswith("`"):  # as another model, which was run
            other = cell.strip("`")
            assert table[other][column] in ("test", "rehearsal", "by hand"), name
            classes = {get_model(model).transformer_class for model in (name, other)}
            assert len(classes) == 1, (name, other)
        else:
            assert cell in ("test", "rehearsal", "by hand", "fixed", "not run"), name
        if column == "other sizes":
            assert (cell == "fixed") == get_model(name).one_size


def test_what_ran_on_a_gpu_is_what_has_results():
    """In the table, in what `rainfusion-trt models` says, and in benchmarks/results."""
    measured = set()
    for path in (ROOT / "benchmarks/results").glob("models_*.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row.get("run") == "engine" and "relative_error" in row:
                measured.add(row["model"])
    said = {row.name: row.on_gpu for row in list_models()}
    assert {name for name, where in said.items() if where} == measured
    for name, row in rows().items():
        assert row[ON_GPU].startswith("not run") == (said[name] is None), name


@pytest.mark.parametrize("column", COLUMNS)
def test_the_tests_are_there_and_are_of_these_models(column):
    for name, (file, function) in TESTS[column].items():
        text = (ROOT / file).read_text(encoding="utf-8")
        tests = {n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}
        assert function in tests, (file, function)
        names = {name, *get_model(name).aliases}
        assert any(f'"{one}"' in text for one in names), (file, name)
        is_rehearsal = rows()[name][column] == "rehearsal"
        of_ltx = file == _LTX and (name == "ltx-2.3" or column == "engine")
        assert is_rehearsal == (file == _LATER or of_ltx)
