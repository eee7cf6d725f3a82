"""`enable` on a module of no registry, told where its video is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rainfusion_trt
from helpers.packed_model import Packed, PackedTransformer
from helpers.plain_dit import TEXT_TOKENS, PlainDiT, example
from helpers.routed_models import call_of, run, tiny
from rainfusion_trt.errors import (
    DenseAttentionError,
    InvalidInputError,
    RainFusionError,
    UnsupportedError,
)
from rainfusion_trt.models import VideoSize
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.routing import survey

FRAMES, ROWS, COLUMNS = 7, 16, 16
GRID = (FRAMES, ROWS // 2, COLUMNS // 2)
TOKENS = FRAMES * ROWS * COLUMNS // 4
# Two float32 programs that order sums differently.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def dit(joint: str = "none") -> PlainDiT:
    torch.manual_seed(3)
    return PlainDiT(joint).eval().requires_grad_(False)


def call(**more):
    return {**example(FRAMES, ROWS, COLUMNS), **more}


def place(joint: str) -> dict:
    return {"text": joint, "text_tokens": 0 if joint == "none" else TEXT_TOKENS}


GRIDS = {
    "numbers": GRID,
    "function": lambda call: call["latents"][0, 0, :, ::2, ::2],
    "numbers of a function": lambda call: GRID,
}


@pytest.mark.parametrize("joint", ["none", "first", "last"])
@pytest.mark.parametrize("grid", GRIDS)
def test_parity_at_0_and_sparse_above(joint, grid):
    module, dense = dit(joint), dit(joint)(**call())
    routing = rainfusion_trt.enable(
        module, grid=GRIDS[grid], sparsity=0.0, **place(joint), method="rainfusion"
    )
    torch.testing.assert_close(module(**call()), dense, **CLOSE)
    assert routing.report() == (("attention 0", "attention 1"), (), ())
    routing.sparsity = 0.8
    assert not torch.allclose(module(**call()), dense, rtol=1e-2, atol=1e-2)
    rainfusion_trt.disable(module)
    assert torch.equal(module(**call()), dense)


def test_it_computes_the_operator_of_that_grid_and_place(monkeypatch):
    """The sparse result depends on both, so that a grid or place that is lost would show."""
    module = dit("first")
    rainfusion_trt.enable(
        module, grid=GRID, sparsity=0.8, **place("first"), sink_frames=2, method="rainfusion"
    )
    expected = dit("first")

    def by_hand(query, key, value, attn_mask=None):
        if key.shape[-2] == TEXT_TOKENS:
            return original(query, key, value)
        return rainfusion_attention(
            query,
            key,
            value,
            torch.empty(GRID),
            sparsity=0.8,
            text="first",
            sink_frames=2,
            method="rainfusion",
        )

    actual = module(**call())
    original = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", by_hand)
    torch.testing.assert_close(actual, expected(**call()), **CLOSE)


@pytest.mark.parametrize("kv_len", ["valid", lambda call: call["valid"]], ids=["name", "function"])
def test_kv_len_stands_for_the_padding_mask(kv_len):
    module = dit("last")
    padded = call(valid=torch.tensor([TOKENS + 3, TOKENS + TEXT_TOKENS]))
    dense = module(**padded)
    rainfusion_trt.enable(module, grid=GRID, sparsity=0.0, kv_len=kv_len, **place("last"))
    torch.testing.assert_close(module(**padded), dense, **CLOSE)
    rainfusion_trt.disable(module)
    rainfusion_trt.enable(module, grid=GRID, sparsity=0.0, **place("last"))
    with pytest.raises(UnsupportedError, match=r"mask of shape \(2, 1, 1, 455\).*kv_len"):
        module(**padded)


def test_the_name_of_an_argument_and_dense_layers():
    module = PackedTransformer().eval().requires_grad_(False)
    inputs = Packed().example_inputs(module, VideoSize(25, 256, 256), batch=1)
    arguments = {**Packed().forward_kwargs(inputs), "return_dict": GRID}  # it is not looked at
    arguments["return_dict"] = tuple(arguments[n] for n in ("num_frames", "height", "width"))
    dense = module(**arguments)[0]
    routing = rainfusion_trt.enable(
        module, grid="return_dict", sparsity=0.6, dense_layers=(0,), method="rainfusion"
    )
    torch.testing.assert_close(module(**arguments)[0], dense, **CLOSE)
    routing.dense_layers = ()
    assert not torch.allclose(module(**arguments)[0], dense, atol=1e-3)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(**arguments)[0], module(**arguments)[0])
    with pytest.raises(InvalidInputError, match="grid='return_dict' is none of the call's arg"):
        module(**{k: v for k, v in arguments.items() if k != "return_dict"})


# -- diffusers' ------------------------------------------------------------------------------------


def of_another_class(name: str) -> tuple[nn.Module, dict]:
    """A transformer that the registry does not know, of diffusers' attention."""
    model, transformer = tiny(name)
    transformer.__class__ = type("Unheard", (type(transformer),), {})
    return transformer.requires_grad_(False), call_of(model, transformer)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("wan2.1-1.3b", {}),
        ("cogvideox-5b", {"text": "first", "text_tokens": 16}),
        ("allegro", {}),
    ],
)
def test_attention_of_diffusers_gets_processors(name, arguments):
    transformer, inputs = of_another_class(name)
    with pytest.raises(UnsupportedError, match=r"no known model .* or grid= .*survey\("):
        rainfusion_trt.enable(transformer)
    dense = run(transformer, inputs)
    routing = rainfusion_trt.enable(
        transformer, grid=(7, 8, 8), sparsity=0.0, **arguments, method="rainfusion"
    )
    assert not routing.by_tokens
    torch.testing.assert_close(run(transformer, inputs), dense, **CLOSE)
    routing.sparsity = 0.7
    sparse = run(transformer, inputs)
    assert routing.routed == 2 and not torch.allclose(sparse, dense, rtol=1e-2, atol=1e-2)
    rainfusion_trt.disable(transformer)
    rainfusion_trt.enable(transformer, model=name, sparsity=0.7, method="rainfusion")
    assert torch.equal(run(transformer, inputs), sparse)


def test_with_processors_it_compiles_whole_and_once():
    transformer, inputs = of_another_class("wan2.1-1.3b")
    grid = lambda call: call["hidden_states"][0, 0, :, ::2, ::2]  # noqa: E731
    routing = rainfusion_trt.enable(transformer, grid=grid, sparsity=0.7, method="rainfusion")
    eager = run(transformer, inputs)
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled, inputs), eager) and routing.routed == 2
    routing.sparsity = 0.3
    with torch.compiler.set_stance("fail_on_recompile"):
        run(compiled, inputs)


def test_attention_of_diffusers_that_is_known_in_part_is_found_by_tokens():
    """HunyuanVideo's refiner attends over the text alone, with a processor that has no twin."""
    transformer, inputs = of_another_class("hunyuanvideo")
    dense = run(transformer, inputs)
    text = inputs["encoder_hidden_states"].shape[1]
    mask = inputs["encoder_attention_mask"]
    routing = rainfusion_trt.enable(
        transformer,
        grid=(7, 8, 8),
        text="last",
        text_tokens=lambda call: call["encoder_hidden_states"].shape[1],
        kv_len=lambda call: 7 * 8 * 8 + call["encoder_attention_mask"].sum(1),
        sparsity=0.0,
    )
    assert routing.by_tokens and mask.sum() < text * len(mask)
    torch.testing.assert_close(run(transformer, inputs), dense, **CLOSE)
    assert routing.routed == 4


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"text": "last", "text_tokens": 3}, "go with grid="),
        ({"kv_len": "valid"}, "go with grid="),
        ({"grid": GRID, "model": "allegro"}, "model= or grid=, not both"),
        ({"grid": (3, 4)}, r"grid=\(3, 4\) must be three positive"),
        ({"grid": (3, 4, 0)}, "three positive"),
        ({"grid": GRID, "text": "middle"}, "text"),
        ({"grid": GRID, "text": "last"}, "text_tokens=0 must be the number"),
        ({"grid": GRID, "text_tokens": 7}, "text_tokens=7 must be 0"),
    ],
)
def test_bad_arguments_are_named_at_once(arguments, match):
    module = dit()
    with pytest.raises(InvalidInputError, match=match) as caught:
        rainfusion_trt.enable(module, **arguments)
    assert "\n" not in str(caught.value)
    rainfusion_trt.enable(module, grid=GRID)  # nothing was left on it


def test_counts_that_do_not_fit_are_named_and_what_would_fit():
    module = dit("last")
    rainfusion_trt.enable(module, grid=(7, 8, 9), sparsity=0.5, method="rainfusion")
    with pytest.raises(DenseAttentionError) as caught:
        module(**call())
    message = str(caught.value)
    assert "with the 504 tokens" in message and "455 x 455 (2 times)" in message
    assert "grid=(7, 8, 8), text='first' or 'last', text_tokens=7" in message
    assert "latents [2, 4, 7, 16, 16] in patches of (1, 2, 2)" in message
    assert "\n" not in message


def test_a_known_model_on_a_network_that_is_another_names_both_counts():
    """A patch of one row for two: refused in the first attention, by processors and by tokens."""
    transformer, inputs = of_another_class("wan2.1-1.3b")
    transformer.register_to_config(patch_size=(1, 1, 2))
    rainfusion_trt.enable(transformer, model="wan2.1-1.3b", sparsity=0.5, method="rainfusion")
    with pytest.raises(RainFusionError, match=r"from 448 to 448 tokens, and a clip .* has 896"):
        run(transformer, inputs)
    module = PackedTransformer()
    sizes = Packed().forward_kwargs(Packed().example_inputs(module, VideoSize(25, 96, 96), batch=1))
    rainfusion_trt.enable(module, model=Packed())
    with torch.no_grad(), pytest.raises(DenseAttentionError, match=r"36 tokens of packed; .*2 x 2"):
        module.forward = lambda **call: nn.functional.scaled_dot_product_attention(
            *[torch.ones(1, 1, 2, 8)] * 3
        )
        module(**sizes)


def test_one_window_is_refused_where_no_configuration_says_the_head_size():
    module = dit()
    rainfusion_trt.enable(module, grid=(3, 2, 2), sparsity=0.5, method="piecewise")
    with pytest.raises(DenseAttentionError, match="one window"):
        module(**example(3, 4, 4))


def test_survey_says_what_it_saw():
    text = survey(dit("first"), **call())
    assert "455 x 455 (2 times), 455 x 7 (2 times)" in text
    assert "grid=(7, 8, 8), text='first' or 'last', text_tokens=7" in text
    transformer, inputs = of_another_class("wan2.1-1.3b")
    assert "grid=(7, 8, 8) (hidden_states" in survey(transformer, **inputs)
    latents, *rest = inputs.values()
    positional = dict(zip(list(inputs)[1:], rest, strict=True))
    assert survey(transformer, latents, **positional) == survey(transformer, **inputs)
