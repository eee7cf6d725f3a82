"""Allegro and OpenSoraPlan: from the arguments of AllegroPipeline to the graph's inputs."""

from __future__ import annotations

import pytest
import torch
from diffusers import AllegroPipeline, EulerAncestralDiscreteScheduler

import rainfusion_trt
from helpers.allegro_models import NAMES, OPENSORA, call_of, forward, tiny
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model


def test_graph_inputs_undo_forward_kwargs():
    transformer = tiny()
    inputs = OPENSORA.example_inputs(transformer, OPENSORA.tiny_size, batch=2)
    back = OPENSORA.graph_inputs(OPENSORA.forward_kwargs(inputs))
    assert list(back) == list(inputs)
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    for name, axes in OPENSORA.dynamic_axes().items():
        assert max(axes) < inputs[name].dim()


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_take_what_the_pipeline_passes(name):
    """diffusers' own AllegroPipeline around a tiny transformer: every call of it is recorded, and
    the graph inputs computed from it give the same sample."""
    model = get_model(name)
    transformer = tiny(model)
    calls, samples = [], []

    def record(_module, _args, kwargs, output):
        calls.append(kwargs)
        samples.append(output[0])

    hook = transformer.register_forward_hook(record, with_kwargs=True)
    scheduler = EulerAncestralDiscreteScheduler()
    pipeline = AllegroPipeline(None, None, None, transformer, scheduler)
    mask = (torch.arange(512) < 7).long()[None]
    text = torch.randn(2, 512, 32)
    with torch.no_grad():
        pipeline(
            negative_prompt=None,
            prompt_embeds=text[:1],
            negative_prompt_embeds=text[1:],
            prompt_attention_mask=mask,
            negative_prompt_attention_mask=mask,
            num_inference_steps=3,
            num_frames=9,
            height=64,
            width=96,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    hook.remove()
    assert len(calls) == 3
    times = [float(call["timestep"][0]) for call in calls]
    assert times == [999.0, 499.5, 0.0]  # not whole: integers would lose the half
    for call, sample in zip(calls, samples, strict=True):
        inputs = model.graph_inputs(call)
        assert inputs["hidden_states"].shape == (2, 4, 3, 8, 12)  # guidance as batch 2
        assert inputs["encoder_hidden_states"].shape == (2, 512, 32)
        assert inputs["timestep"].tolist() == call["timestep"].tolist()
        assert torch.equal(forward(transformer, model.forward_kwargs(inputs)), sample)


def test_pipeline_runs_it_in_torch_and_as_a_graph(tmp_path):
    """The same latents from precomputed text, through AllegroPipeline, by both backends."""
    pytest.importorskip("onnxruntime")
    from rainfusion_trt.export import export_model

    transformer = tiny()
    file = tmp_path / "tiny.onnx"
    export_model(OPENSORA, transformer, OPENSORA.tiny_size, output=file)
    mask = (torch.arange(512) < 7).long()[None]
    text = torch.randn(2, 512, 32, generator=torch.Generator().manual_seed(1))
    latents = []
    for options in ({"backend": "torch"}, {"onnx": file, "backend": "onnxruntime"}):
        diffusers_pipeline = AllegroPipeline(
            None, None, None, transformer, EulerAncestralDiscreteScheduler()
        )
        with rainfusion_trt.Pipeline(pipe=diffusers_pipeline, sparsity=0.0, **options) as pipeline:
            assert pipeline.model is OPENSORA
            output = pipeline(
                prompt_embeds=text[:1],
                negative_prompt_embeds=text[1:],
                prompt_attention_mask=mask,
                negative_prompt_attention_mask=mask,
                num_inference_steps=2,
                num_frames=9,
                height=64,
                width=96,
                seed=0,
                output_type="latent",
            )
        latents.append(output.frames)
    assert latents[0].shape == (1, 4, 3, 8, 12)
    # Rounding errors of 2e-6 relative a call, times the guidance of 7.5 and a sigma of 14.
    scale = float(latents[0].abs().max())
    torch.testing.assert_close(latents[1], latents[0], atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(93, 720, 1280), (29, 480, 640), (88, 368, 640)])
def test_rotary_tables_are_the_pipelines(name, size):
    model = get_model(name)
    transformer = tiny(model)
    inputs = model.example_inputs(transformer, VideoSize(*size), batch=1)
    pipeline = AllegroPipeline.__new__(AllegroPipeline)
    pipeline.transformer, pipeline.vae_scale_factor_spatial = transformer, 8
    rotary = AllegroPipeline._prepare_rotary_positional_embeddings(
        pipeline, 1, size[1], size[2], inputs["hidden_states"].shape[2], torch.device("cpu")
    )
    call = {**model.forward_kwargs(inputs), "image_rotary_emb": rotary}
    given = model.graph_inputs(call)
    torch.testing.assert_close(inputs["rotary_cos"], given["rotary_cos"], atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs["rotary_sin"], given["rotary_sin"], atol=1e-5, rtol=0)


def test_a_call_without_mask_over_the_text_attends_to_all_of_it():
    transformer = tiny()
    call = {**call_of(OPENSORA, transformer, OPENSORA.tiny_size), "encoder_attention_mask": None}
    again = OPENSORA.forward_kwargs(OPENSORA.graph_inputs(call))
    assert torch.equal(forward(transformer, again), forward(transformer, call))


def test_calls_that_do_not_fit_are_refused():
    transformer = tiny()
    call = call_of(OPENSORA, transformer, OPENSORA.tiny_size)
    tables, positions = call["image_rotary_emb"]
    wrong = {
        "attention_mask": (torch.ones(2, 3, 8, 12), UnsupportedError, "attention_mask"),
        "encoder_attention_mask": (torch.ones(2, 1, 512), InvalidInputError, r"\(2, 1, 512\)"),
        "image_rotary_emb": (None, InvalidInputError, "image_rotary_emb is missing"),
    }
    for name, (value, error, message) in wrong.items():
        with pytest.raises(error, match=message):
            OPENSORA.graph_inputs({**call, name: value})
    two = (tables, tuple(p.expand(2, -1) for p in positions))
    with pytest.raises(UnsupportedError, match=r"positions of shape \(2, 72\)"):
        OPENSORA.graph_inputs({**call, "image_rotary_emb": two})
    inputs = OPENSORA.example_inputs(transformer, OPENSORA.tiny_size, batch=1)
    inputs["rotary_sin"] = inputs["rotary_sin"][1:]
    with pytest.raises(InvalidInputError, match=r"\(72, 96\) and \(71, 96\)"):
        OPENSORA.forward_kwargs(inputs)
