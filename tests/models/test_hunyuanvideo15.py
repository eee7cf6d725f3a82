"""HunyuanVideo-1.5: its forward without branches and S x S masks, inputs and routing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator import ops  # noqa: F401  (registers torch.ops.rainfusion)

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("hunyuanvideo-1.5")
SIZE = VideoSize(9, 96, 128)  # 3 x 6 x 8 tokens and 1985 of text


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float32)


class LatentShape:
    """The part of a VAE that the pipeline needs when it returns latents."""

    config = SimpleNamespace(latent_channels=4)
    temporal_compression_ratio = 4
    spatial_compression_ratio = 16


def call_of(transformer, lengths, lengths_2) -> dict:
    """A call with prompts of these lengths."""
    inputs = MODEL.example_inputs(transformer, SIZE, batch=len(lengths))
    for end, valid in (("", lengths), ("_2", lengths_2)):
        mask = inputs[f"encoder_attention_mask{end}"]
        mask.copy_(torch.arange(mask.shape[1]) < torch.tensor(valid)[:, None])
    return MODEL.forward_kwargs(inputs)


@torch.no_grad()
def forward(transformer, call) -> torch.Tensor:
    return transformer(**call, return_dict=False)[0]


def test_full_size_is_the_published_one():
    with torch.device("meta"):
        transformer = HunyuanVideo15Transformer3DModel(**MODEL.config())
    assert sum(p.numel() for p in transformer.parameters()) == 8_326_608_160
    assert MODEL.attention_count(transformer.config) == 54
    assert model_of(transformer) is MODEL


@pytest.mark.parametrize("change", [{"task_type": "i2v"}, {"use_meanflow": True}], ids=str)
def test_other_checkpoints_of_the_class_are_refused(tmp_path, change):
    other = HunyuanVideo15Transformer3DModel(**{**MODEL.config("tiny", layers=1), **change})
    assert not MODEL.matches(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"is not hunyuanvideo-1\.5: "):
        MODEL.load(str(tmp_path), dtype=torch.float32)


def test_bad_requests_are_named(transformer):
    with pytest.raises(InvalidInputError, match="layers=55"):
        MODEL.config("full", layers=55)
    for size, message in ((SIZE.frames + 1, 96, 128), "frames=10"), ((9, 90, 128), "height=90"):
        with pytest.raises(InvalidInputError, match=message):
            MODEL.example_inputs(transformer, VideoSize(*size), batch=1)


@pytest.mark.parametrize(
    ("lengths", "lengths_2"),
    [((300, 1000), (40, 0)), ((1,), (256,)), ((1000,), (256,))],
    ids=str,
)
def test_call_is_the_transformers_forward(transformer, lengths, lengths_2):
    call = call_of(transformer, lengths, lengths_2)
    with torch.no_grad():
        actual = MODEL.call(transformer, call)
    # The order of the text tokens is diffusers', only slots that nobody reads differ.
    torch.testing.assert_close(actual, forward(transformer, call), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_call_is_the_forward_from_an_image(strength):
    """Also where the embeddings are zeros, diffusers' sign for no image."""
    model = get_model("hunyuanvideo-1.5-i2v-step-distilled")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    inputs = model.example_inputs(transformer, SIZE, batch=2)
    inputs["image_embeds"] *= strength
    call = model.forward_kwargs(inputs)
    with torch.no_grad():
        actual = model.call(transformer, call)
    torch.testing.assert_close(actual, forward(transformer, call), atol=1e-5, rtol=0)
    lengths = call["encoder_attention_mask"].sum(1) + call["encoder_attention_mask_2"].sum(1)
    valid = model.layout(transformer, call).kv_len - 3 * 6 * 8
    assert valid.tolist() == (lengths + 729 * strength).tolist()


def test_masks_may_have_holes(transformer):
    call = call_of(transformer, (300,), (40,))
    call["encoder_attention_mask_2"][:, ::2] = 0
    with torch.no_grad():
        actual = MODEL.call(transformer, call)
    torch.testing.assert_close(actual, forward(transformer, call), atol=1e-5, rtol=0)


def test_zero_sparsity_is_dense(transformer, monkeypatch):
    call = call_of(transformer, (300, 17), (40, 0))
    dense = forward(transformer, call)
    seen, operator = [], torch.ops.rainfusion.attention

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    try:
        # float32 softmaxes that sum in another order, through two blocks.
        torch.testing.assert_close(forward(transformer, call), dense, atol=2e-5, rtol=0)
    finally:
        rainfusion_trt.disable(transformer)
    assert len(seen) == 2  # not the refiner of the text
    for q, _, _, grid, _, kv_len, text, *_ in seen:
        assert q.shape == (2, 2, 144 + 1985, 64) and grid.shape == (3, 6, 8) and text == "last"
        assert kv_len.dtype is torch.int32 and kv_len.tolist() == [144 + 340, 144 + 17]


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("tokens", [729, 3])
def test_images_are_attended_to(task, tokens):
    """Image to video, and a configuration of text to video that is given an image."""
    config = {**MODEL.config("tiny"), "task_type": task}
    transformer = MODEL.create(config, dtype=torch.float32)
    call = call_of(transformer, (300, 17), (40, 0))
    generator = torch.Generator().manual_seed(2)
    without = forward(transformer, call)
    call["image_embeds"] = torch.randn(2, tokens, 1152, generator=generator)
    dense = forward(transformer, call)
    assert (dense - without).abs().max() > 1e-3
    layout = MODEL.layout(transformer, call)
    assert layout.text_tokens == 1256 + tokens
    assert layout.kv_len.tolist() == [144 + tokens + 340, 144 + tokens + 17]
    rainfusion_trt.enable(transformer, sparsity=0.0, model=MODEL)
    error = (forward(transformer, call) - dense).abs().max() / dense.abs().max()
    assert error < 1e-5


def test_a_graph_takes_no_image(transformer):
    call = call_of(transformer, (300,), (40,))
    assert "image_embeds" not in MODEL.graph_inputs(call)
    call["image_embeds"][0, 5, 7] = 1e-3
    with pytest.raises(UnsupportedError, match="image_embeds.*text to video"):
        MODEL.graph_inputs(call)


def made_pipeline(transformer) -> HunyuanVideo15Pipeline:
    """Without text encoders and with a VAE that is never called."""
    pipeline = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=LatentShape(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=9.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(6.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments_of(steps: int) -> dict:
    """A call of the pipeline with a prompt of 70 tokens, a negative one of 5, and quoted words."""
    arguments = {
        "height": SIZE.height,
        "width": SIZE.width,
        "num_frames": SIZE.frames,
        "num_inference_steps": steps,
        "output_type": "latent",
    }
    for sign, length in (("", 70), ("negative_", 5)):
        arguments[f"{sign}prompt_embeds"] = torch.randn(1, 1000, 32)
        arguments[f"{sign}prompt_embeds_mask"] = (torch.arange(1000) < length)[None].long()
        arguments[f"{sign}prompt_embeds_2"] = torch.randn(1, 256, 24)
        arguments[f"{sign}prompt_embeds_mask_2"] = (torch.arange(256) < 9)[None].long()
    return arguments


def test_graph_inputs_hold_all_of_a_pipelines_call(monkeypatch):
    """The transformer computes the same from the graph's inputs as from the pipeline's calls."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.bfloat16)
    calls, original = [], transformer.forward

    def record(**call):
        calls.append((call, original(**call)[0]))
        return calls[-1][1:]

    monkeypatch.setattr(transformer, "forward", record)
    made_pipeline(transformer)(**arguments_of(steps=1))
    assert len(calls) == 2  # guidance as two calls
    expected = MODEL.example_inputs(transformer, SIZE, batch=1)
    for (call, sample), length in zip(calls, (70, 5), strict=True):
        inputs = MODEL.graph_inputs(call)
        assert {n: (t.dtype, t.shape) for n, t in inputs.items()} == {
            n: (t.dtype, t.shape) for n, t in expected.items()
        }
        assert inputs["encoder_attention_mask"].sum() == length
        with torch.no_grad():
            again = original(**MODEL.forward_kwargs(inputs), return_dict=False)[0]
        assert torch.equal(again, sample)


def test_steps_are_counted_without_a_callback_of_the_pipeline():
    """This diffusers pipeline has no callback_on_step_end and no guidance_scale."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    pipe, arguments = made_pipeline(transformer), arguments_of(steps=2)
    options = {"backend": "torch", "device": "cpu", "method": "rainfusion"}
    with rainfusion_trt.Pipeline(pipe=pipe, **options) as pipeline:
        out = pipeline(**arguments, seed=0, schedule=[0.0, 0.5], profile=True)
        assert out.sparsity == (0.0, 0.5) and [t.step for t in out.timings] == [0, 1]
        assert "step" not in vars(pipe.scheduler)
        given = {"guidance_scale": (6.0, "set pipe.guider"), "callback_on_step_end": (print, "")}
        for name, (value, words) in given.items():
            with pytest.raises(InvalidInputError, match=f"takes no {name}.*{words}"):
                pipeline(**arguments, **{name: value})
    plain = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    assert plain.shape == out.frames.shape and not torch.equal(plain, out.frames)


def test_calls_that_do_not_fit_are_refused(transformer):
    call = call_of(transformer, (3,), (2,))
    assert list(MODEL.graph_inputs({**call, "attention_kwargs": None})) == list(
        MODEL.example_inputs(transformer, SIZE, batch=1)
    )
    with pytest.raises(UnsupportedError, match="attention_kwargs"):
        MODEL.graph_inputs({**call, "attention_kwargs": {"scale": 0.5}})
    with pytest.raises(UnsupportedError, match="timestep_r"):
        MODEL.graph_inputs({**call, "timestep_r": torch.ones(1)})
    with pytest.raises(InvalidInputError, match="encoder_attention_mask_2 is missing"):
        MODEL.graph_inputs({**call, "encoder_attention_mask_2": None})
