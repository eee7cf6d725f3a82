"""Allegro and OpenSoraPlan: configuration, inputs, routing and checkpoints, on the CPU."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import AllegroPipeline, AllegroTransformer3DModel, EulerAncestralDiscreteScheduler
from opensora_reference import forward as original_forward
from safetensors.torch import save_file

import rainfusion_trt
from rainfusion_trt import ops  # noqa: F401  (registers torch.ops.rainfusion)
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of

ALLEGRO, OPENSORA = get_model("allegro"), get_model("opensoraplan-1.2")
NAMES = ["allegro", "opensoraplan-1.2"]
SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show


def tiny(model=OPENSORA, **options):
    return model.create(model.config("tiny"), dtype=torch.float32, **options)


def call_of(model, transformer, size=SIZE, batch=2) -> dict:
    return model.forward_kwargs(model.example_inputs(transformer, size, batch=batch))


@torch.no_grad()
def forward(transformer, call) -> torch.Tensor:
    return transformer(**call, return_dict=False)[0]


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "frames"), [("allegro", 22), ("opensoraplan-1.2", 24)])
def test_full_size_is_the_published_one(name, frames):
    model = get_model(name)
    with torch.device("meta"):
        transformer = AllegroTransformer3DModel(**model.config())
    assert sum(p.numel() for p in transformer.parameters()) == 2_771_907_856
    assert len(transformer.state_dict()) == 687
    assert model.attention_count(transformer.config) == 32
    assert model_of(transformer) is model
    assert transformer.config.sample_frames == frames


def test_the_rotary_scales_tell_the_models_apart():
    config = {**OPENSORA.config("tiny", layers=1)}
    for scales, model in (((2.2, 2.0, 2.0), ALLEGRO), ((1.0, 1.0, 1.0), OPENSORA)):
        named = {f"interpolation_scale_{a}": s for a, s in zip("thw", scales, strict=True)}
        assert model_of(AllegroTransformer3DModel(**{**config, **named})) is model
    for change in ({"interpolation_scale_t": None}, {"patch_size_t": 2}):
        with pytest.raises(UnsupportedError, match="AllegroTransformer3DModel"):
            model_of(AllegroTransformer3DModel(**{**config, **change}))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("allegro", (88, 720, 1280), (22, 45, 80)),
        ("opensoraplan-1.2", (93, 720, 1280), (24, 45, 80)),
        ("opensoraplan-1.2", (93, 480, 640), (24, 30, 40)),
        ("opensoraplan-1.2", (29, 480, 640), (8, 30, 40)),
    ],
)
def test_grid_and_inputs_at_the_standard_sizes(name, size, grid):
    model = get_model(name)
    with torch.device("meta"):
        transformer = AllegroTransformer3DModel(**model.config("tiny", layers=1))
    inputs = model.example_inputs(transformer, VideoSize(*size), batch=1)
    layout = model.layout(transformer, inputs)
    assert tuple(layout.grid.shape) == grid
    assert (layout.text, layout.text_tokens, layout.kv_len) == ("none", 0, None)
    tokens = grid[0] * grid[1] * grid[2]
    assert inputs["rotary_cos"].shape == inputs["rotary_sin"].shape == (tokens, 96)
    assert inputs["encoder_hidden_states"].shape[1] == 512


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 64, 64), "frames=0"),
        ((9, 72, 64), "height=72 must be a multiple of 16"),
        ((9, 64, 0), "width=0"),
    ],
)
def test_sizes_that_do_not_exist(size, message):
    transformer = tiny()
    with pytest.raises(InvalidInputError, match=message):
        OPENSORA.example_inputs(transformer, VideoSize(*size), batch=1)


@pytest.mark.parametrize("layers", [0, 33])
def test_depth_must_exist(layers):
    with pytest.raises(InvalidInputError, match=f"layers={layers} must be between 1 and 32"):
        OPENSORA.config("full", layers=layers)


def test_activations_stay_sane_through_32_layers():
    config = {**OPENSORA.config("tiny"), "num_layers": 32}
    transformer = OPENSORA.create(config, dtype=torch.float16)
    largest = []
    for block in transformer.transformer_blocks:
        block.register_forward_hook(lambda _m, _i, out: largest.append(out.abs().max()))
    sample = forward(transformer, call_of(OPENSORA, transformer, VideoSize(5, 48, 64), batch=1))
    assert len(largest) == 32 and max(largest) < 1000  # float16 ends at 65504
    assert 0.5 < sample.float().std() < 2.0


# -- inputs ----------------------------------------------------------------------------------------


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
    from rainfusion_export import export_model

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


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_dense_and_half_is_not(name):
    model = get_model(name)
    transformer = tiny(model)
    call = call_of(model, transformer)
    dense = forward(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    # Two float32 softmaxes that sum 448 keys in another order, through two layers.
    torch.testing.assert_close(forward(transformer, call), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2 and routing.model is model
    routing.sparsity = 0.5
    sparse = forward(transformer, call)
    assert torch.isfinite(sparse).all() and (sparse - dense).abs().max() > 1e-2
    rainfusion_trt.disable(transformer)
    assert torch.equal(forward(transformer, call), dense)


def test_cross_attention_is_left_alone():
    """The operator gets the video alone; the dense calls left are those with the text's mask."""
    transformer = tiny()
    call = call_of(OPENSORA, transformer)
    routed, dense = [], []
    operator = torch.ops.rainfusion.attention

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                query, key, _, mask = args[:4]
                dense.append((query.shape[2], key.shape[2], tuple(mask.shape)))
            elif func is operator:
                routed.append(args)
            return func(*args, **(kwargs or {}))

    rainfusion_trt.enable(transformer, sparsity=0.5)
    with Watch():
        forward(transformer, call)
    for query, key, _, grid, _, kv_len, text, *_ in routed:
        assert query.shape[2] == key.shape[2] == 448
        assert grid.shape == (7, 8, 8) and text == "none" and kv_len is None
    assert len(routed) == 2
    assert dense == [(448, 512, (2, 2, 1, 512))] * 2


def test_a_clip_as_long_as_the_text_is_refused():
    """8 x 8 x 8 video tokens and 512 of text: lengths do not tell the two attentions apart."""
    transformer = tiny()
    call = call_of(OPENSORA, transformer, VideoSize(29, 128, 128), batch=1)
    rainfusion_trt.enable(transformer)
    with pytest.raises(UnsupportedError, match="clip of 512 tokens"):
        forward(transformer, call)


# -- checkpoints -----------------------------------------------------------------------------------


def test_load_tells_allegro_from_opensoraplan(tmp_path):
    tiny(seed=4).save_pretrained(tmp_path)
    loaded = OPENSORA.load(str(tmp_path), dtype=torch.float16)
    assert loaded.dtype is torch.float16 and not loaded.training
    with pytest.raises(UnsupportedError, match=r"not allegro.*\(1.0, 1.5, 2.0\)"):
        ALLEGRO.load(str(tmp_path), dtype=torch.float16)


ORIGINAL_CONFIG = {
    "_class_name": "OpenSoraT2V",
    "_diffusers_version": "0.29.0",
    "num_attention_heads": 2,
    "attention_head_dim": 96,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "dropout": 0.0,
    "cross_attention_dim": 192,
    "attention_bias": True,
    "sample_size": [60, 80],
    "sample_size_t": 8,
    "patch_size": 2,
    "patch_size_t": 1,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "caption_channels": 32,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
    "interpolation_scale_t": 1.0,
    "attention_mode": "xformers",
    "downsampler": None,
    "use_rope": True,
}


def save_original(folder, weights, *, shards: int = 1, **changes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**ORIGINAL_CONFIG, **changes}))
    names = sorted(weights)
    for shard in range(shards):
        suffix = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, folder / f"diffusion_pytorch_model{suffix}.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tiny(seed=8).state_dict().items()}


@pytest.mark.parametrize("shards", [1, 2])
def test_original_checkpoint_computes_what_the_original_code_does(tmp_path, weights, shards):
    checkpoint = save_original(tmp_path, weights, shards=shards)
    transformer = OPENSORA.load(checkpoint, dtype=torch.float32)
    assert model_of(transformer) is OPENSORA and not transformer.training
    call = call_of(OPENSORA, transformer, OPENSORA.tiny_size)
    expected = original_forward(ORIGINAL_CONFIG, weights, call)
    # The same operations in float32: a few dozen rounding errors of 6e-8 at values near 4.
    torch.testing.assert_close(forward(transformer, call), expected, atol=2e-5, rtol=0)


def test_original_checkpoint_takes_the_dtype_and_keeps_its_scales(tmp_path, weights):
    scales = {"interpolation_scale_h": 1.5, "interpolation_scale_w": 2.0}
    checkpoint = save_original(tmp_path, weights, sample_size=[90, 160], **scales)
    transformer = OPENSORA.load(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in transformer.parameters()} == {torch.bfloat16}
    config = transformer.config
    assert (config.interpolation_scale_t, config.interpolation_scale_h) == (1.0, 1.5)
    assert (config.interpolation_scale_w, config.sample_width) == (2.0, 160)


@pytest.mark.parametrize(("frames", "expected"), [(24, 1.5), (29, 2.0), (1, 1.0)])
def test_scales_that_are_not_written_are_what_the_original_computes(
    tmp_path, weights, frames, expected
):
    scales = dict.fromkeys(f"interpolation_scale_{axis}" for axis in "thw")
    checkpoint = save_original(
        tmp_path, weights, sample_size=[90, 160], sample_size_t=frames, **scales
    )
    config = OPENSORA.load(checkpoint, dtype=torch.float32).config
    assert config.interpolation_scale_t == expected
    assert (config.interpolation_scale_h, config.interpolation_scale_w) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"use_rope": False}, UnsupportedError, "use_rope is False.*ROPE-L/122"),
        ({"downsampler": "k333_s222"}, UnsupportedError, "downsampler is 'k333_s222'"),
        ({"patch_size_t": 2}, UnsupportedError, "patch_size_t is 2"),
        ({"sample_size": None, "norm_eps": None}, InvalidInputError, "norm_eps, sample_size"),
        ({"num_layers": 3}, InvalidInputError, "lack transformer_blocks.2.* and 20 more"),
        ({"num_layers": 1}, InvalidInputError, "unknown to it, transformer_blocks.1"),
        ({"caption_channels": 16}, InvalidInputError, r"\(192, 32\), expected \(192, 16\)"),
    ],
)
def test_original_checkpoints_that_do_not_fit(tmp_path, weights, changes, error, message):
    with pytest.raises(error, match=message):
        OPENSORA.load(save_original(tmp_path, weights, **changes), dtype=torch.float32)


def test_original_checkpoint_without_readable_weights(tmp_path, weights):
    checkpoint = save_original(tmp_path, weights)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
    file.unlink()
    with pytest.raises(InvalidInputError, match=f"holds no {file.name}"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="config.json is not a readable configuration"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
