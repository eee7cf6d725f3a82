"""From the calls of diffusers' LTX pipelines to the graph's inputs, and the graph in pipelines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)

import rainfusion_trt
from helpers.ltx_models import NAMES, call_of, errors, run, tiny
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize
from rainfusion_trt.runtime.base import Backend, TensorInfo
from rainfusion_trt.runtime.denoiser import GraphTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = VideoSize(17, 64, 96)  # 3 x 2 x 3 tokens
SCALE = (8 / 25, 32, 32)


class Eager(Backend):
    """A graph that is the transformer itself."""

    name = "eager"

    def __init__(self, model, transformer) -> None:
        self.model, self.transformer, self.device = model, transformer, torch.device("cpu")
        self.feeds: list[dict[str, torch.Tensor]] = []
        example = model.example_inputs(transformer, SIZE, batch=1)
        self.inputs = {
            name: TensorInfo(name, tensor.dtype, (None,) * tensor.dim(), (None,) * tensor.dim())
            for name, tensor in example.items()
        }
        self.outputs = {n: TensorInfo(n, torch.float32, (), ()) for n in model.outputs}

    def run(self, feed):
        self.feeds.append({name: t for name, t in feed.items() if name != "sparsity"})
        outputs = run(self.transformer, self.model.forward_kwargs(self.feeds[-1]))
        return dict(zip(self.model.outputs, outputs, strict=True))

    def describe(self) -> str:
        return self.name


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def text(batch: int = 1) -> dict[str, torch.Tensor]:
    """Two prompts' embeddings of 128 tokens, the text's mask over a few of them."""
    embeds = torch.randn(2, 128, 32, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(128) < 7)[None]
    return {
        "prompt_embeds": embeds[:1],
        "negative_prompt_embeds": embeds[1:],
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
    }


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_undo_forward_kwargs(name):
    model, transformer = tiny(name, num_layers=1)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    back = model.graph_inputs(model.forward_kwargs(inputs))
    assert list(back) == [given.name for given in model.inputs]
    assert all(torch.equal(back[key], inputs[key]) for key in inputs if key != "grid")
    assert back["grid"].shape == inputs["grid"].shape == (3, 4, 6)
    for key, axes in model.dynamic_axes().items():
        assert max(axes) < inputs[key].dim()


def test_timesteps_and_numbers_of_every_form_give_the_same_sample():
    model, transformer = tiny("ltx-video-2b", num_layers=1)
    call = call_of(model, transformer, SIZE, batch=2)
    del call["video_coords"]
    call["rope_interpolation_scale"] = SCALE
    forms = {
        "one": (torch.tensor(999.5), [[999.5], [999.5]]),
        "clips": (torch.tensor([999.5, 3.0]), [[999.5], [3.0]]),
        "clips as columns": (torch.tensor([[999.5], [3.0]]), [[999.5], [3.0]]),
        "tokens": (torch.arange(36.0).reshape(2, 18), torch.arange(36.0).reshape(2, 18).tolist()),
    }
    for form, (timestep, rows) in forms.items():
        inputs = model.graph_inputs({**call, "timestep": timestep})
        expected = torch.tensor(rows).expand(2, 18)
        assert torch.equal(inputs["timestep"], expected), form
        given = {**call, "timestep": expected[:, :1] if len(rows[0]) == 1 else expected}
        again = model.forward_kwargs(inputs)
        assert max(errors(run(transformer, again), run(transformer, given))) < 1e-5


def test_calls_that_do_not_fit_are_refused():
    model, transformer = tiny("ltx-video-2b", num_layers=1)
    call = call_of(model, transformer, SIZE, batch=2)
    wrong = {
        "timestep": (torch.ones(2, 3), InvalidInputError, r"timestep has shape \[2, 3\]"),
        "encoder_attention_mask": (torch.ones(2, 1, 128), InvalidInputError, r"\[2, 1, 128\]"),
        "video_coords": (
            torch.cat([call["video_coords"], call["video_coords"] + 1]),
            UnsupportedError,
            "video_coords differs between the clips",
        ),
    }
    for name, (value, error, message) in wrong.items():
        with pytest.raises(error, match=message):
            model.graph_inputs({**call, name: value})
    with pytest.raises(InvalidInputError, match="neither video_coords nor rope_interpolation"):
        model.graph_inputs({**call, "video_coords": None})
    model, transformer = tiny("ltx-2.3", num_layers=1)
    call = call_of(model, transformer, SIZE)
    for name, value, message in (
        ("isolate_modalities", True, "modality_scale=1"),
        ("spatio_temporal_guidance_blocks", [1], "stg_scale=0"),
        ("video_keyframes_mask", torch.ones(1, 18, 1), "keyframes"),
        ("use_cross_timestep", False, "use_cross_timestep=True"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            model.graph_inputs({**call, name: value})
    nothing = {"isolate_modalities": False, "spatio_temporal_guidance_blocks": []}
    assert model.graph_inputs({**call, **nothing, "video_keyframes_mask": None})


@pytest.mark.parametrize("crossed", [True, False])
def test_timesteps_between_the_streams_of_ltx_2(crossed):
    """Of the tokens, as it was trained, or of a clip, as pipelines have it by default."""
    model, transformer = tiny("ltx-2")
    call = call_of(model, transformer, SIZE, batch=2)
    call.update(audio_timestep=torch.tensor([400.5, 9.0]), use_cross_timestep=crossed)
    call.update(sigma=torch.tensor([500.5, 10.0]), audio_sigma=torch.tensor([300.0, 7.5]))
    again = model.forward_kwargs(model.graph_inputs(call))
    assert max(errors(run(transformer, again), run(transformer, call))) < 1e-5


@pytest.mark.parametrize("kind", [LTXPipeline, LTXImageToVideoPipeline, LTXConditionPipeline])
def test_the_graph_takes_what_the_pipeline_passes(kind):
    """Text to video gives numbers, image to video timesteps of tokens, conditions coordinates."""
    model, transformer = tiny("ltx-video-2b")
    size = {"num_frames": SIZE.frames, "height": SIZE.height, "width": SIZE.width}
    options = {"num_inference_steps": 2, "output_type": "latent", **size, **text()}
    if kind is LTXImageToVideoPipeline:
        first = torch.randn(1, 8, 3, 2, 3, generator=torch.Generator().manual_seed(2))
        packed = LTXPipeline._pack_latents(first)
        mask = torch.zeros(1, 1, 3, 2, 3)
        mask[:, :, 0] = 1
        options["latents"] = packed
        masked = LTXPipeline._pack_latents(mask).squeeze(-1)
    results, backend = [], Eager(model, transformer)
    for module in (transformer, GraphTransformer(backend, model, transformer.config)):
        pipe = kind(scheduler(), None, None, None, module)
        if kind is LTXConditionPipeline:
            pipe.scheduler = FlowMatchEulerDiscreteScheduler()
            pipe.vae = SimpleNamespace(dtype=torch.float32)
        if kind is LTXImageToVideoPipeline:
            pipe.prepare_latents = lambda *_a, **_k: (packed.clone(), masked)
            options["image"] = torch.zeros(1, 3, SIZE.height, SIZE.width)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        results.append(pipe(**options, generator=generator, return_dict=False)[0])
    assert len(backend.feeds) == 2
    for feed in backend.feeds:
        assert feed["hidden_states"].shape == (2, 18, 8) and feed["grid"].shape == (3, 2, 3)
        first_tokens = feed["timestep"][:, :6]
        assert (first_tokens == 0).all() == (kind is LTXImageToVideoPipeline)
        assert (feed["timestep"][:, 6:] > 0).all()
    # Guidance by 3 in each of two steps, of float32 rounding.
    assert max(errors([results[1]], [results[0]])) < 1e-4


def test_ltx_2_pipeline_with_a_graph_gives_both_streams():
    """Its pipeline asks the transformer for rotary embeddings, which the graph has too."""
    model, transformer = tiny("ltx-2.3", audio_in_channels=128, audio_out_channels=128)
    config = transformer.config

    class Connectors(torch.nn.Module):
        """In the place of what makes each stream's text of the encoder's."""

        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, embeds, mask, padding_side):
            video = embeds.mean(-1, keepdim=True).expand(-1, -1, config.cross_attention_dim)
            audio = embeds.mean(-1, keepdim=True).expand(-1, -1, config.audio_cross_attention_dim)
            return video, audio, mask

    options = dict(text(), num_inference_steps=2, guidance_rescale=0.0, audio_guidance_rescale=0.0)
    options.update(num_frames=SIZE.frames, height=SIZE.height, width=SIZE.width)
    options.update(stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0, audio_modality_scale=1.0)
    results, backend = [], Eager(model, transformer)
    for module in (transformer, GraphTransformer(backend, model, config)):
        pipe = LTX2Pipeline(scheduler(), None, None, None, None, Connectors(), module, None)
        pipe.set_progress_bar_config(disable=True)
        steps: list[torch.Tensor] = []

        def keep(_pipe, _step, _time, tensors, steps=steps):
            steps.extend((tensors["latents"], tensors["audio_latents"]))
            return {}

        names = ["latents", "audio_latents"]
        type(pipe)._callback_tensor_inputs = names
        with pytest.raises(AttributeError, match="latents_mean"):  # no VAE of the sound after it
            pipe(
                **options,
                callback_on_step_end=keep,
                callback_on_step_end_tensor_inputs=names,
                generator=torch.Generator().manual_seed(0),
            )
        results.append(steps)
    assert len(results[0]) == 4 and len(backend.feeds) == 2
    assert max(errors(results[1], results[0])) < 1e-4
    output = GraphTransformer(backend, model, config)(**call_of(model, transformer, SIZE))
    assert output.sample.shape == (1, 18, 8) and output.audio_sample.shape == (1, 18, 128)


def test_a_graph_without_the_sound_is_refused():
    model, transformer = tiny("ltx-2", num_layers=1)
    backend = Eager(model, transformer)
    del backend.outputs["audio_sample"]
    with pytest.raises(InvalidInputError, match="no output audio_sample: export the model again"):
        GraphTransformer(backend, model, transformer.config)


def test_pipeline_runs_it_sparse_in_torch():
    model, transformer = tiny("ltx-video-2b")
    pipe = LTXPipeline(scheduler(), None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    size = {"num_frames": 49, "height": 256, "width": 256}
    with rainfusion_trt.Pipeline(
        pipe=pipe, backend="torch", method="rainfusion", sparsity=0.6, device="cpu"
    ) as pipeline:
        assert pipeline.model is model
        output = pipeline(**text(), **size, num_inference_steps=2, seed=0, output_type="latent")
    assert output.sparsity == (0.0, 0.6)
    assert [(step.routed, step.dense) for step in output.steps] == [(2, 0), (2, 0)]
    assert output.frames.shape == (1, 448, 8) and output.steps[1].density < 0.9
