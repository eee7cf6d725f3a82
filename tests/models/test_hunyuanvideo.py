"""HunyuanVideo: configuration, inputs, layout and routing of the tiny model, on the CPU."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator import ops  # noqa: F401  (registers torch.ops.rainfusion)

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("hunyuanvideo")
SIZE = VideoSize(17, 96, 128)  # 5 x 6 x 8 tokens and 256 of text


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float32)


def call_of(transformer, lengths=(40, 256)) -> dict:
    """A call with prompts of these lengths."""
    inputs = MODEL.example_inputs(transformer, SIZE, batch=len(lengths))
    mask = torch.arange(256) < torch.tensor(lengths)[:, None]
    return MODEL.forward_kwargs({**inputs, "encoder_attention_mask": mask.to(torch.int32)})


@torch.no_grad()
def forward(transformer, call) -> torch.Tensor:
    return transformer(**call, return_dict=False)[0]


# -- configuration ---------------------------------------------------------------------------------


def test_full_size_is_the_published_one():
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**MODEL.config())
    assert sum(p.numel() for p in transformer.parameters()) == 12_821_012_544
    assert MODEL.attention_count(transformer.config) == 60
    assert model_of(transformer) is MODEL


@pytest.mark.parametrize(("layers", "blocks"), [(1, (1, 1)), (20, (20, 20)), (40, (20, 40))])
def test_depth_counts_each_kind_of_block(layers, blocks):
    config = MODEL.config("full", layers=layers)
    assert (config["num_layers"], config["num_single_layers"]) == blocks
    with pytest.raises(InvalidInputError, match="layers=41 must be between 1 and 40"):
        MODEL.config("full", layers=41)


@pytest.mark.parametrize(
    "change",
    [
        {"image_condition_type": "token_replace"},
        {"image_condition_type": "latent_concat", "in_channels": 9, "guidance_embeds": False},
        {"guidance_embeds": False},
    ],
    ids=str,
)
def test_other_checkpoints_of_the_class_are_refused(tmp_path, change):
    config = {**MODEL.config("tiny", layers=1), **change}
    other = HunyuanVideoTransformer3DModel(**config)
    assert not MODEL.matches(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="is not hunyuanvideo: "):
        MODEL.load(str(tmp_path), dtype=torch.float32)


def test_random_weights_keep_unit_scale(transformer):
    assert 0.5 < forward(transformer, call_of(transformer)).std() < 2.0


@pytest.mark.parametrize(
    ("size", "message"),
    [((128, 720, 1280), "frames=128"), ((129, 724, 1280), "height=724"), ((9, 64, 0), "width=0")],
)
def test_sizes_that_do_not_exist(transformer, size, message):
    with pytest.raises(InvalidInputError, match=message):
        MODEL.example_inputs(transformer, VideoSize(*size), batch=1)


# -- what the pipeline passes ----------------------------------------------------------------------


def test_graph_inputs_hold_all_of_a_pipelines_call(monkeypatch):
    """The transformer computes the same from the graph's inputs as from the pipeline's call."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.bfloat16)
    pipeline = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    calls, original = [], transformer.forward

    def record(**call):
        calls.append((call, original(**call)[0]))
        return calls[-1][1:]

    monkeypatch.setattr(transformer, "forward", record)
    pipeline(
        prompt_embeds=torch.randn(1, 256, 32),
        pooled_prompt_embeds=torch.randn(1, 16),
        prompt_attention_mask=(torch.arange(256) < 77)[None],
        height=SIZE.height,
        width=SIZE.width,
        num_frames=SIZE.frames,
        num_inference_steps=2,
        guidance_scale=4.0,
        output_type="latent",
    )
    assert len(calls) == 2
    expected = MODEL.example_inputs(transformer, SIZE, batch=1)
    for call, sample in calls:
        inputs = MODEL.graph_inputs(call)
        assert {n: (t.dtype, t.shape) for n, t in inputs.items()} == {
            n: (t.dtype, t.shape) for n, t in expected.items()
        }
        assert inputs["encoder_attention_mask"].sum() == 77
        assert inputs["guidance"].tolist() == [4000.0]
        with torch.no_grad():
            again = original(**MODEL.forward_kwargs(inputs), return_dict=False)[0]
        assert torch.equal(again, sample)
    times = [MODEL.graph_inputs(call)["timestep"].item() for call, _ in calls]
    # sigma = 7 * 0.5 / (1 + 6 * 0.5); after one step the pipeline's latents, and with them its
    # timesteps, are bfloat16.
    assert times == [1000.0, pytest.approx(875.0, rel=2**-8)]


def test_graph_inputs_undo_forward_kwargs(transformer):
    inputs = MODEL.example_inputs(transformer, SIZE, batch=2)
    back = MODEL.graph_inputs(MODEL.forward_kwargs(inputs))
    assert list(back) == list(inputs)
    assert all(torch.equal(back[name], inputs[name]) for name in inputs)
    for name, axes in MODEL.dynamic_axes().items():
        assert max(axes) < inputs[name].dim()


def test_calls_that_do_not_fit_are_refused(transformer):
    call = call_of(transformer)
    assert MODEL.graph_inputs({**call, "attention_kwargs": {}, "return_dict": False})
    with pytest.raises(UnsupportedError, match="attention_kwargs"):
        MODEL.graph_inputs({**call, "attention_kwargs": {"scale": 0.5}})
    for name in ("guidance", "encoder_attention_mask"):
        with pytest.raises(InvalidInputError, match=f"{name} is missing"):
            MODEL.graph_inputs({**call, name: None})


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "tokens"), [(720, 1280, 118_800), (544, 960, 67_320)])
def test_layout_at_the_standard_sizes(height, width, tokens):
    latents = torch.zeros(()).expand(2, 16, 33, height // 8, width // 8)
    mask = (torch.arange(256) < torch.tensor([[41], [256]])).to(torch.bfloat16)  # the pipeline's
    call = {"hidden_states": latents, "encoder_attention_mask": mask}
    layout = MODEL.layout(None, call)
    assert tuple(layout.grid.shape) == (33, height // 16, width // 16)
    assert (layout.text, layout.text_tokens) == ("last", 256)
    assert layout.kv_len.dtype is torch.int32
    assert layout.kv_len.tolist() == [tokens + 41, tokens + 256]


@pytest.mark.parametrize("lengths", [(40, 256), (256,), (1,)], ids=str)
def test_zero_sparsity_is_dense(transformer, monkeypatch, lengths):
    call = call_of(transformer, lengths)
    dense = forward(transformer, call)
    seen, operator = [], torch.ops.rainfusion.attention

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    try:
        # float32 softmaxes that sum 496 keys in another order, through four blocks.
        torch.testing.assert_close(forward(transformer, call), dense, atol=5e-5, rtol=0)
    finally:
        rainfusion_trt.disable(transformer)
    assert len(seen) == 4  # two double and two single blocks, not the refiner of the text
    for q, k, v, grid, _, kv_len, text, *_ in seen:
        assert q.shape == k.shape == v.shape == (len(lengths), 2, 240 + 256, 64)
        assert grid.shape == (5, 6, 8) and text == "last"
        assert kv_len.tolist() == [240 + length for length in lengths]


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_padding_is_never_read(sparsity):
    """Other embeddings behind the prompt's end change nothing."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    call = call_of(transformer, (100,))
    padded = call["encoder_attention_mask"][..., None] == 0
    other = {**call, "encoder_hidden_states": call["encoder_hidden_states"] + padded * 3.0}
    dense = forward(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=sparsity, method="rainfusion")
    sample = forward(transformer, call)
    torch.testing.assert_close(forward(transformer, other), sample, atol=1e-5, rtol=0)
    assert ((sample - dense).abs().max() > 1e-2) == (sparsity > 0)
