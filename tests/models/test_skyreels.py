"""SkyReels V2 in the registry, under `enable`, in its pipelines and as a graph."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from PIL import Image

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model, model_of
from tests.helpers.routed_parity import check_parity, sizes_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("skyreels-v2-14b", "skyreels-v2-df-14b", "skyreels-v2-df-1.3b", "skyreels-v2-i2v-14b")
I2V = NAMES[3]
SITES = ("blocks.0.attn1", "blocks.1.attn1")


def tiny(name: str, **changes):
    model = get_model(name)
    return model, model.create({**model.config("tiny"), **changes}, dtype=torch.float32)


def call_of(model, transformer, size, batch, *, seed=0) -> dict:
    """With another timestep for each element, and for each frame where frames have their own."""
    inputs = model.example_inputs(transformer, size, batch=batch, seed=seed)
    steps = inputs["timestep"]
    inputs["timestep"] = torch.linspace(20.5, 990.0, steps.numel()).reshape(steps.shape)
    return model.forward_kwargs(inputs)


@pytest.mark.parametrize("name", NAMES[:3])
def test_full_size(name):
    """That of Wan 2.1, and where the network is told the frame rate, an embedding of it."""
    model = get_model(name)
    wan = {"14b": 14_288_491_584, "1.3b": 1_418_996_800}[name.rpartition("-")[2]]
    width = 128 * model.config()["num_attention_heads"]
    rate = 2 * width + (width + 1) * width + (width + 1) * 6 * width
    with torch.device("meta"):
        transformer = SkyReelsV2Transformer3DModel(**model.config())
    extra = rate if transformer.config.inject_sample_info else 0
    assert sum(p.numel() for p in transformer.parameters()) == wan + extra
    assert model.attention_count(transformer.config) == len(transformer.blocks)
    extents = model.extents(model.config(), model.defaults.size, 1)
    assert [extents[f"grid_{axis}"] for axis in ("frames", "height", "width")] == [25, 34, 60]


def test_an_image_adds_what_it_adds_to_wan():
    model = get_model(I2V)
    with torch.device("meta"):
        transformer = SkyReelsV2Transformer3DModel(**model.config("full", layers=2))
        wan = WanTransformer3DModel(**get_model("wan2.1-i2v-14b").config("full", layers=2))
    shapes = {name: tuple(p.shape) for name, p in transformer.named_parameters()}
    assert shapes == {name: tuple(p.shape) for name, p in wan.named_parameters()}
    assert model.config()["num_layers"] == 40


def test_transformers_are_told_apart_by_their_width():
    """Those of 14B have one configuration, with diffusion forcing or without."""
    found = [model_of(tiny(name)[1]).name for name in NAMES]
    assert found == [NAMES[0], NAMES[0], NAMES[2], I2V]
    with pytest.raises(UnsupportedError, match="SkyReelsV2Transformer3DModel"):
        model_of(tiny(I2V, pos_embed_seq_len=514)[1])  # of two images
    with pytest.raises(UnsupportedError, match="SkyReelsV2Transformer3DModel"):
        model_of(tiny(NAMES[0], image_dim=16, in_channels=36, added_kv_proj_dim=384)[1])


@pytest.mark.parametrize("name", NAMES)
def test_enable_is_dense_at_zero_and_sparse_in_self_attention(name):
    model, transformer = tiny(name)
    for size, batch in sizes_of(model):
        check_parity(model, transformer, call_of(model, transformer, size, batch), SITES)


def test_fused_projections():
    model, transformer = tiny("skyreels-v2-df-14b", num_layers=1)
    transformer.fuse_qkv_projections()
    size, batch = sizes_of(model)[1]
    call = call_of(model, transformer, size, batch)
    check_parity(model, transformer, call, SITES[:1])


def test_causal_blocks_of_frames_are_refused():
    """As the pipeline sets them for causal_block_size above 1."""
    model, transformer = tiny("skyreels-v2-df-14b")
    size = VideoSize(29, 64, 64)  # 8 latent frames
    call = call_of(model, transformer, size, 1)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    transformer._set_ar_attention(4)
    with pytest.raises(UnsupportedError, match=r"num_frame_per_block=4.*causal_block_size=1") as e:
        transformer(**call)
    assert "\n" not in str(e.value)
    transformer._set_ar_attention(1)
    with torch.no_grad():
        transformer(**call)


@pytest.mark.parametrize("ar_step", [0, 1], ids=["one step for all frames", "asynchronous"])
def test_diffusion_forcing_in_its_pipeline(ar_step):
    """Asynchronous steps give frames timesteps of their own."""
    model, transformer = tiny("skyreels-v2-df-1.3b")
    pipe = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_pipeline(transformer).vae,
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(2, 1, 512, 32, generator=torch.Generator().manual_seed(1))
    call = {
        "prompt": None,
        "prompt_embeds": text[0],
        "negative_prompt_embeds": text[1],
        "num_frames": 17,
        "height": 64,
        "width": 96,
        "ar_step": ar_step,
    }
    call.update(num_inference_steps=3, output_type="latent", causal_block_size=1)
    steps = []

    def run():
        return pipe(**call, generator=torch.Generator().manual_seed(0)).frames

    hook = transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: steps.append(kwargs["timestep"]), with_kwargs=True
    )
    dense = run()
    hook.remove()
    assert all(step.shape == (1, 5) for step in steps)
    assert any(len(step.unique()) > 1 for step in steps) is (ar_step > 0)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    # Unit scale; guidance multiplies float32 rounding by 6 in each of at most seven steps.
    torch.testing.assert_close(run(), dense, atol=1e-4, rtol=0)
    assert routing.model is model and routing.routed == 2


def picture() -> Image.Image:
    """Brighter to the right and to the bottom."""
    grey = torch.linspace(0, 1, 96) + torch.linspace(0, 0.9, 64)[:, None]
    return Image.fromarray((grey * 127).to(torch.uint8).numpy()).convert("RGB")


def test_an_image_in_its_pipeline():
    """Diffusers' frames, all self-attentions routed, every call through the graph's inputs."""
    model, transformer = tiny(I2V)
    pipe = tiny_pipeline(transformer, SkyReelsV2ImageToVideoPipeline)
    text = torch.randn(2, 1, 512, 32, generator=torch.Generator().manual_seed(1))
    clip = {"num_frames": 13, "height": 64, "width": 96, "num_inference_steps": 2}
    call = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], "output_type": "latent"}

    def run(shown: Image.Image) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt=None, image=shown, **call, **clip, generator=generator).frames

    calls = []
    dense = run(picture())
    assert (run(picture().rotate(180)) - dense).abs().max() > 1e-2  # the image matters
    hook = transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    # Unit scale; guidance multiplies float32 rounding by 5 in each of two steps.
    torch.testing.assert_close(run(picture()), dense, atol=1e-4, rtol=0)
    hook.remove()
    assert routing.model is model and routing.report() == (SITES, (), ())
    assert len(calls) == 4  # guidance is two calls a step
    for given in calls:
        inputs = model.graph_inputs(given)
        image = inputs["hidden_states"][:, 20:]
        assert image[:, :, 0].std() > 0.1 and inputs["encoder_hidden_states_image"].std() > 0.1
        for name, value in model.forward_kwargs(inputs).items():
            assert torch.equal(value, torch.as_tensor(given[name]).to(value.dtype)), name


def test_a_last_image_is_refused():
    model = get_model(I2V)
    model.check_media({"image": picture(), "last_image": None}, exported=False)
    with pytest.raises(InvalidInputError, match="leave last_image out, or take skyreels-v2-df-14b"):
        model.check_media({"image": picture(), "last_image": picture()}, exported=False)
    model.check_start(["image"])  # by which a service knows before there is a picture
    with pytest.raises(InvalidInputError, match="leave last_image out"):
        model.check_start(["image", "last_image"])


# -- the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_undo_forward_kwargs(name):
    model, transformer = tiny(name)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    call = model.forward_kwargs(inputs)
    back = model.graph_inputs(call)
    assert list(back) == list(inputs)
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    forcing = "-df-" in name
    assert call.get("enable_diffusion_forcing", False) is forcing
    with pytest.raises(InvalidInputError, match="enable_diffusion_forcing"):
        model.graph_inputs({**call, "enable_diffusion_forcing": not forcing})
    with pytest.raises(InvalidInputError, match="timestep has shape"):
        model.graph_inputs({**call, "timestep": torch.ones(2) if forcing else torch.ones(2, 3)})
    if name != I2V:
        with pytest.raises(UnsupportedError, match="encoder_hidden_states_image"):
            model.graph_inputs({**call, "encoder_hidden_states_image": torch.ones(1, 257, 8)})
    if name == NAMES[2]:
        with pytest.raises(UnsupportedError, match="24 frames a second"):
            model.graph_inputs({**call, "fps": [0]})


@pytest.mark.parametrize("name", ["skyreels-v2-df-1.3b", "skyreels-v2-i2v-14b"])
def test_exported_graph_equals_pytorch(tmp_path, name):
    model = get_model(name)
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    report = export_model(
        model,
        transformer,
        model.tiny_size,
        output=tmp_path / "m.onnx",
        run_compare=False,
    )
    assert report.facts.attentions == 1
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    call = call_of(model, transformer, model.tiny_size, 1, seed=1)
    with torch.no_grad():
        expected = transformer(**call).sample
    feed = {name: tensor.numpy() for name, tensor in model.graph_inputs(call).items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    error = (torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4  # as in tests/export/test_exported_models.py
