"""The settings' one type: checks, conversions, and who relies on its defaults."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator import cuda_ops, native_types, ops, reference
from rainfusion_trt.operator.exact_frames import frames_of_flat, frames_of_text, ranges_of
from rainfusion_trt.operator.geometry import TokenLayout
from rainfusion_trt.operator.settings import (
    ATTRIBUTES,
    LATER_ATTRIBUTES,
    METHODS,
    NODE_ATTRIBUTES,
    OPERATOR_V1_DEFAULTS,
    RECORDED,
    TEXT_PLACES,
    AttentionSettings,
)
from rainfusion_trt.routing import RainFusionSettings

OTHER = AttentionSettings("rainfusion2", 0.75, 3, "last", 0.125)
EIGHT_BIT = OTHER.replace(precision="8bit")
LAST = OTHER.replace(last_sink_frames=2)
EXACT = OTHER.replace(exact_frames=(12, (24, 26)))
RECORD = {"method": "rainfusion2", "alpha": 0.75, "sink_frames": 3}


def test_names_are_those_of_the_type():
    fields = [field.name for field in dataclasses.fields(AttentionSettings)]
    assert sorted(fields) == sorted(ATTRIBUTES) and set(RECORDED) < set(ATTRIBUTES)


def test_version_1_is_what_it_was():
    assert list(OTHER.node_attributes()) == list(NODE_ATTRIBUTES)
    assert OPERATOR_V1_DEFAULTS.node_attributes() == {
        "text": "none",
        "method": "rainfusion",
        "alpha": 0.9,
        "sink_frames": 1,
        "scale": 0.0,
    }


def test_what_came_later_is_told_where_it_is_not_the_default():
    assert OTHER.later_attributes() == {}
    assert EIGHT_BIT.node_attributes() == {**OTHER.node_attributes(), "precision": "8bit"}
    assert LAST.node_attributes() == {**OTHER.node_attributes(), "last_sink_frames": 2}
    exact = {**OTHER.node_attributes(), "exact_frames": [12, 13, 24, 26]}
    assert EXACT.node_attributes() == exact
    all_told = EXACT.replace(precision="8bit", last_sink_frames=2)
    assert tuple(all_told.later_attributes()) == LATER_ATTRIBUTES
    assert all(
        getattr(OPERATOR_V1_DEFAULTS, name) == getattr(AttentionSettings, name)
        for name in LATER_ATTRIBUTES  # so that what is not told means one thing everywhere
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("method", "flash", "method='flash' is not one of rainfusion, rainfusion_two_way"),
        ("method", None, "method=None is not one of"),
        ("text", "middle", "text='middle' is not one of none, first, last"),
        ("alpha", 1.5, r"alpha=1\.5 must be in \[0, 1\]"),
        ("alpha", float("nan"), r"alpha=nan must be in \[0, 1\]"),
        ("alpha", "0.9", "alpha='0.9' must be a number"),
        ("alpha", True, "alpha=True must be a number"),
        ("sink_frames", -1, "sink_frames=-1 must be 0 or more"),
        ("sink_frames", 1.0, r"sink_frames=1\.0 must be a whole number"),
        ("sink_frames", None, "sink_frames=None must be a whole number"),
        ("sink_frames", False, "sink_frames=False must be a whole number"),
        ("last_sink_frames", -1, "^last_sink_frames=-1 must be 0 or more"),
        ("last_sink_frames", 1.0, r"last_sink_frames=1\.0 must be a whole number"),
        ("last_sink_frames", 1 << 31, "last_sink_frames=2147483648 must be below"),
        ("exact_frames", 12, r"exact_frames=12 must be a sequence of latent frames and of ranges"),
        ("exact_frames", "12", "exact_frames='12' must be a sequence"),
        ("exact_frames", None, "exact_frames=None must be a sequence"),
        ("exact_frames", (1.0,), r"exact_frames has 1\.0, which is neither a latent frame nor"),
        ("exact_frames", (True,), "exact_frames has True, which is neither"),
        ("exact_frames", ("12",), "exact_frames has '12', which is neither"),
        ("exact_frames", ((1, 2, 3),), r"exact_frames has \(1, 2, 3\), which is neither"),
        ("exact_frames", torch.tensor(3), r"exact_frames=tensor\(3\) must be a sequence"),
        ("exact_frames", (np.array(3),), r"exact_frames has array\(3\), which is neither"),
        ("exact_frames", {1: 2}, r"exact_frames={1: 2} must be a sequence"),
        ("exact_frames", ({3, 5},), r"exact_frames has {3, 5}, which is neither"),
        ("exact_frames", (range(3, 9, 3),), r"exact_frames has range\(3, 9, 3\), which is neither"),
        ("exact_frames", range(10**12), r"exact_frames has range\(0, 10+\): latent frames"),
        ("exact_frames", (-1,), "exact_frames has -1: latent frames count from 0"),
        ("exact_frames", ((5, 5),), r"exact_frames has \(5, 5\): .* ends behind its last frame"),
        ("exact_frames", (1 << 31,), "exact_frames has 2147483648: latent frames"),
        ("exact_frames", (1, 3, 5, 7, 9), r"\(1, 3, 5, 7, 9\) are 5 ranges .* kernels take 4"),
        ("scale", -1.0, r"scale=-1\.0 must be positive"),
        ("scale", float("inf"), "scale=inf must be positive"),
        ("scale", None, "scale=None must be a number"),
    ],
)
def test_bad_values_are_named(name, value, words):
    with pytest.raises(InvalidInputError, match=words):
        AttentionSettings(**{name: value})
    with pytest.raises(InvalidInputError, match=words):
        OTHER.replace(**{name: value})


def test_numbers_have_the_types_of_a_nodes_attributes():
    numbers = {"sink_frames": np.int64(2), "last_sink_frames": np.int32(1)}
    settings = AttentionSettings(alpha=1, scale=np.float32(0.5), **numbers)
    kinds = [type(value) for value in settings.flat()]
    assert kinds == [str, str, float, int, float, str, int, list]
    assert settings.flat()[2:] == (1.0, 2, 0.5, "16bit", 1, [])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((12, (24, 26)), ((12, 13), (24, 26))),
        ([[24, 26], np.int64(12)], ((12, 13), (24, 26))),
        (range(3), ((0, 3),)),
        ((range(3, 5), range(7, 10)), ((3, 5), (7, 10))),
        (range(3, 3), ()),
        ((np.int8(127),), ((127, 128),)),
        (((4, 9), 2, 5, (8, 11), 11), ((2, 3), (4, 12))),
        ((9, 7, 3, 1, 2, 8), ((1, 4), (7, 10))),
        ((), ()),
    ],
    ids=str,
)
def test_exact_frames_are_kept_in_one_form(given, kept):
    assert AttentionSettings(exact_frames=given).exact_frames == kept
    flat = [number for each in kept for number in each]
    assert ranges_of(frames_of_flat(flat)) == kept


def test_exact_frames_of_texts():
    assert frames_of_text(["12", " 24:26 "]) == (12, (24, 26))
    for text in ("-1", "1:2:3", "a", "", "1.5", "1-2"):
        with pytest.raises(InvalidInputError, match=f"exact_frames '{text}' is neither"):
            frames_of_text([text])
    with pytest.raises(InvalidInputError, match="exact_frames '9+ is neither"):
        frames_of_text(["9" * 5000])


@pytest.mark.parametrize("method", ["rainfusion", "rainfusion_plus"])
def test_textural_heads_have_no_exact_frames(method):
    words = f"exact_frames=.*textural heads of method '{method}'; use 'piecewise', 'rainfusion2'"
    with pytest.raises(UnsupportedError, match=words):
        AttentionSettings(method=method, exact_frames=(1,))


def test_exact_frames_are_of_the_clip():
    TokenLayout.of([13, 4, 4], 13 * 16 + 6, AttentionSettings(text="last", exact_frames=(12,)))
    words = r"exact_frames=\(\(13, 14\),\) names latent frame 13, and the clip has 13, from 0 on"
    with pytest.raises(InvalidInputError, match=words):
        rainfusion_trt.rainfusion_attention(
            *torch.zeros(3, 1, 1, 13 * 16, 16).unbind(0), (13, 4, 4), exact_frames=(13,)
        )


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OTHER.alpha = 0.5


def test_flat_is_the_order_of_the_torch_operators():
    for operator in (torch.ops.rainfusion.attention, torch.ops.rainfusion.attention_lse):
        names = [argument.name for argument in operator.default._schema.arguments]
        assert names == ["q", "k", "v", "grid", "sparsity", "kv_len", *ATTRIBUTES]
    assert OTHER.flat() == (*tuple(OTHER.attributes().values())[:-1], [])
    assert EXACT.flat() == (*OTHER.flat()[:-1], [12, 13, 24, 26])
    assert list(OTHER.attributes()) == list(ATTRIBUTES)
    for settings in (OTHER, EIGHT_BIT, LAST, EXACT):
        assert AttentionSettings.from_flat(*settings.flat()) == settings


def test_a_record_is_what_older_files_hold():
    assert OTHER.replace(text="none", scale=0.0).record() == RECORD
    read = AttentionSettings.from_record(RECORD)
    assert read.record() == RECORD and (read.text, read.scale) == ("none", 0.0)
    model_wide = EIGHT_BIT.replace(text="none", scale=0.0)
    assert model_wide.record() == {**RECORD, "precision": "8bit"}
    assert AttentionSettings.from_record(model_wide.record()) == model_wide
    model_wide = LAST.replace(text="none", scale=0.0)
    assert model_wide.record() == {**RECORD, "last_sink_frames": 2}
    assert AttentionSettings.from_record(model_wide.record()) == model_wide
    model_wide = EXACT.replace(text="none", scale=0.0)
    assert model_wide.record() == {**RECORD, "exact_frames": [[12, 13], [24, 26]]}
    again = json.loads(json.dumps(model_wide.record()))
    assert again == model_wide.record() and AttentionSettings.from_record(again) == model_wide


def test_a_record_without_a_setting_means_version_1():
    assert AttentionSettings.from_record({}) == OPERATOR_V1_DEFAULTS
    read = AttentionSettings.from_record({"alpha": 0.5})
    assert read == OPERATOR_V1_DEFAULTS.replace(alpha=0.5)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**RECORD, "band": 1}, "have 'band'; they are method, alpha, sink_frames"),
        ({**RECORD, "text": "last"}, "have 'text'; they are"),
        ({**RECORD, "alpha": "0.9"}, "alpha='0.9' must be a number"),
        ({**RECORD, "last_sink_frames": -1}, "last_sink_frames=-1"),
        ({**RECORD, "method": "fast"}, "method='fast'"),
        ([0.9], r"settings \[0\.9\] must be a mapping"),
        ("rainfusion", "settings 'rainfusion' must be a mapping"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_in_one_line(record, words):
    with pytest.raises(InvalidInputError, match=words) as caught:
        AttentionSettings.from_record(record)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"text": "last"}, {"scale": 0.5}])
def test_text_and_scale_are_no_settings_of_a_whole_model(change):
    settings = AttentionSettings(**change)
    with pytest.raises(InvalidInputError, match="cannot be set for a whole model"):
        settings.record()


def test_binding_has_the_same_names_in_the_same_order():
    assert [m.name.lower() for m in native_types.Method] == list(METHODS)
    assert [t.name.lower() for t in native_types.Text] == list(TEXT_PLACES)
    assert [int(m) for m in native_types.Method] == list(range(len(METHODS)))


def test_problem_of_settings():
    q = torch.zeros(2, 3, 5 * 4 * 4 + 6, 64, dtype=torch.bfloat16)
    problem = native_types.Problem.of(q, (5, 4, 4), OTHER)
    found = {name: getattr(problem, name) for name, _ in problem._fields_}
    assert [(each.begin, each.end) for each in found.pop("exact_frames")] == [(0, 0)] * 4
    assert found == {
        "batch": 2,
        "heads": 3,
        "tokens": 86,
        "head_size": 64,
        "grid_t": 5,
        "grid_h": 4,
        "grid_w": 4,
        "sink_frames": 3,
        "alpha": 0.75,
        "softmax_scale": 0.125,
        "text": native_types.Text.LAST,
        "method": native_types.Method.RAINFUSION2,
        "dtype": native_types.Dtype.BFLOAT16,
        "block_q": 0,  # the definition's
        "block_k": 0,
        "precision": native_types.Precision.BITS_16,
        "last_sink_frames": 0,
    }
    assert native_types.Problem.of(q, (5, 4, 4), LAST).last_sink_frames == 2
    assert native_types.Problem.of(q, (5, 4, 4), EIGHT_BIT).precision == 1
    exact = native_types.Problem.of(q, (5, 4, 4), EXACT).exact_frames
    assert [(each.begin, each.end) for each in exact] == [(12, 13), (24, 26), (0, 0), (0, 0)]


def test_layout_of_settings():
    assert TokenLayout.of([5, 4, 4], 86, OTHER) == TokenLayout((5, 4, 4), 86, "last", 3)
    assert TokenLayout.of([5, 4, 4], 86, LAST) == TokenLayout((5, 4, 4), 86, "last", 3, 2)
    wanted = TokenLayout((30, 4, 4), 480, "last", 3, 0, ((12, 13), (24, 26)))
    assert TokenLayout.of([30, 4, 4], 480, EXACT) == wanted


def test_softmax_scale():
    assert OTHER.softmax_scale(64) == 0.125
    assert AttentionSettings().softmax_scale(64) == 0.125
    assert AttentionSettings().softmax_scale(16) == 0.25


def test_the_name_of_version_0_1_still_is_a_settings_type():
    assert RainFusionSettings("rainfusion2", 0.75, 3) == AttentionSettings.from_record(RECORD)


# -- one call, checked once ------------------------------------------------------------------------

GRID = (4, 8, 8)


def qkv(dtype=torch.float32):
    return torch.randn(3, 1, 2, 4 * 8 * 8, 16).to(dtype).unbind(0)


def test_a_call_is_checked_once(monkeypatch):
    made, checked = [], []
    post_init, check_call = AttentionSettings.__post_init__, ops.check_call

    def count_made(self):
        made.append(self)
        post_init(self)

    def count_checked(*arguments):
        checked.append(arguments)
        check_call(*arguments)

    monkeypatch.setattr(AttentionSettings, "__post_init__", count_made)
    monkeypatch.setattr(ops, "check_call", count_checked)
    q, k, v = qkv()
    for _ in range(3):
        rainfusion_trt.rainfusion_attention(q, k, v, GRID, alpha=0.625)
    assert len(checked) == 3
    assert len(made) <= 4  # in each call, and once where the operator puts them together again
    rainfusion_trt.classify_heads(q, k, GRID, alpha=0.625)
    assert len(checked) == 4


def test_the_torch_operator_itself_refuses_bad_settings():
    q, k, v = qkv()
    given = (q, k, v, torch.empty(GRID), torch.tensor([0.5]), None)
    with pytest.raises(InvalidInputError, match=r"alpha=1\.5"):
        torch.ops.rainfusion.attention(*given, "none", "rainfusion", 1.5, 1, 0.0, "16bit", 0, [])


def test_faces_get_the_settings_whole(monkeypatch):
    seen = []
    whole = reference.attention

    def record(*arguments, **options):
        seen.append(arguments[-1])
        return whole(*arguments, **options)

    monkeypatch.setattr(reference, "attention", record)
    rainfusion_trt.rainfusion_attention(*qkv(), GRID, **OTHER.attributes())
    assert seen == [OTHER]


class Library:
    """Refuses every problem, as the library does at its first call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def workspace_size(self, problem):
        self.calls.append("workspace_size")
        raise UnsupportedError("head_size = 16 has no kernel; kernels exist for 64, 96 and 128")


def test_a_launch_leaves_the_checks_to_the_library(monkeypatch):
    library = Library()
    monkeypatch.setattr(cuda_ops, "_library_for", lambda device: library)
    q, k, v = qkv(torch.float16)
    with pytest.raises(UnsupportedError, match="head_size = 16 has no kernel"):
        cuda_ops.launch(
            "attention", (q, k, v, q), GRID, torch.tensor([0.5]), None, AttentionSettings()
        )
    assert library.calls == ["workspace_size"]
