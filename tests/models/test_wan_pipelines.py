"""Diffusers' Wan pipelines beyond text to video, whole and tiny, with RainFusion in them."""

from __future__ import annotations

from contextlib import contextmanager

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES, HEIGHT, WIDTH = 9, 64, 96  # 3 x 4 x 6 tokens
CLIP = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
CALL = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def film(frames: int, height: int = HEIGHT, width: int = WIDTH) -> list[PIL.Image.Image]:
    return [picture(seed, height, width) for seed in range(frames)]


def pipeline(name: str, kind: str | None = None, **options):
    """A model's pipeline, or another that drives its transformer."""
    model = get_model(name)
    kind = kind or model.pipeline_class
    assert kind in (model.pipeline_class, *model.other_pipelines)
    parts = [
        model.create(model.config("tiny"), dtype=torch.float32, seed=seed)
        for seed, _ in enumerate(model.components)
    ]
    if len(parts) > 1:
        options.update(transformer_2=parts[1], boundary_ratio=0.9)
    return model, tiny_pipeline(parts[0], getattr(diffusers, kind), **options)


def generate(pipe, **arguments) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    width = pipe.transformer.config.text_dim
    texts = torch.randn(2, 1, 512, width, generator=random)
    prompts = {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1]}
    return pipe(**CALL, **prompts, **arguments, generator=random).frames


@contextmanager
def watched(model, pipe):
    """RainFusion at sparsity 0 in all transformers, whose calls are kept."""
    parts = [getattr(pipe, name) for name in model.components]
    calls = []
    routings = [rainfusion_trt.enable(part, sparsity=0.0) for part in parts]
    hooks = [
        part.register_forward_pre_hook(lambda *a: calls.append(a[-1]), with_kwargs=True)
        for part in parts
    ]
    try:
        yield calls, routings
    finally:
        for part, hook in zip(parts, hooks, strict=True):
            hook.remove()
            rainfusion_trt.disable(part)


def check(model, pipe, **arguments) -> list[dict]:
    """The frames are diffusers'; every call goes into the graph's inputs and back.

    Returns the calls.
    """
    expected = generate(pipe, **arguments)
    with watched(model, pipe) as (calls, routings):
        actual = generate(pipe, **arguments)
        for routing in routings:
            attentions = model.attention_count(pipe.transformer.config)
            assert len(routing.report().routed) == attentions
    # Guidance multiplies float32 rounding by up to 4 in each of two steps.
    assert (actual - expected).abs().max() / expected.abs().max() < 1e-4
    shapes = {given.name: given for given in model.inputs}
    for call in calls:
        inputs = model.graph_inputs(call)
        assert list(inputs) == list(shapes)
        for name, value in model.forward_kwargs(inputs).items():
            assert torch.equal(value, torch.as_tensor(call[name]).to(value.dtype)), name
    return calls


def extents(model, frames: int = FRAMES) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's inputs for a clip."""
    config, size = model.config("tiny"), rainfusion_trt.models.VideoSize(frames, HEIGHT, WIDTH)
    known = model.extents(config, size, 1)
    return {given.name: given.shape(known, config) for given in model.inputs}


def test_image_to_video():
    model, pipe = pipeline("wan2.1-i2v-14b")
    calls = check(model, pipe, **CLIP, image=picture(0))
    assert len(calls) == 4  # guidance is two calls a step
    inputs = model.graph_inputs(calls[0])
    assert {name: tuple(value.shape) for name, value in inputs.items()} == extents(model)
    # The mask's four channels say that frame 0 is given, and the image's latents follow.
    mask, image = inputs["hidden_states"][:, 16:20], inputs["hidden_states"][:, 20:]
    assert (mask[:, :, 0] == 1).all() and (mask[:, :, 1:] == 0).all()
    assert image[:, :, 0].std() > 0.1
    assert inputs["encoder_hidden_states_image"].std() > 0.1


def test_first_and_last_frame_to_video():
    """The last frame is conditioned by channels and is no sink."""
    model, pipe = pipeline("wan2.1-flf2v-14b")
    calls = check(model, pipe, **CLIP, image=picture(0), last_image=picture(1))
    assert calls[0]["encoder_hidden_states_image"].shape == (2, 257, 24)
    inputs = model.graph_inputs(calls[0])
    assert {name: tuple(value.shape) for name, value in inputs.items()} == extents(model)
    mask = inputs["hidden_states"][0, 16:20, :, 0, 0]
    # A latent frame stands for four of the clip, but the first: only its last one is given.
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_image_to_video_of_two_experts():
    model, pipe = pipeline("wan2.2-i2v-a14b")
    calls = check(model, pipe, **CLIP, image=picture(0))
    assert all(call["encoder_hidden_states_image"] is None for call in calls)
    early = pipe.scheduler.timesteps >= 900
    assert early.any() and not early.all()  # both ran


def test_image_mode_of_the_5b():
    """The same network and graph as text to video; the image's tokens have the timestep 0."""
    model, pipe = pipeline(
        "wan2.2-ti2v-5b", "WanImageToVideoPipeline", expand_timesteps=True, image_encoder=None
    )
    size = {"num_frames": FRAMES, "height": 2 * HEIGHT, "width": 2 * WIDTH}
    calls = check(model, pipe, **size, image=picture(0, 2 * HEIGHT, 2 * WIDTH))
    timestep = calls[0]["timestep"]
    assert timestep.shape == (1, 72)
    assert (timestep[:, :24] == 0).all() and (timestep[:, 24:] > 900).all()


def test_video_to_video():
    model, pipe = pipeline("wan2.1-1.3b", "WanVideoToVideoPipeline")
    calls = check(model, pipe, height=HEIGHT, width=WIDTH, video=film(FRAMES), strength=0.9)
    inputs = model.graph_inputs(calls[0])
    assert {name: tuple(value.shape) for name, value in inputs.items()} == extents(model)


@pytest.mark.parametrize("references", [0, 2])
def test_control_and_reference_images(references):
    """Each reference image is a latent frame more in front: 9 frames and two are those of 17."""
    model, pipe = pipeline("wan2.1-vace-1.3b")
    images = [picture(seed) for seed in range(references)] or None
    mask = [PIL.Image.new("L", (WIDTH, HEIGHT), 255 * (index > 2)) for index in range(FRAMES)]
    arguments = {"video": film(FRAMES), "mask": mask, "reference_images": images}
    calls = check(model, pipe, **CLIP, **arguments, conditioning_scale=[0.5, 1.5])
    inputs = model.graph_inputs(calls[0])
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    assert shapes == extents(model, FRAMES + 4 * references)
    assert inputs["control_hidden_states_scale"].tolist() == [0.5, 1.5]
    assert model.grid_shape(pipe.transformer, calls[0])[0] == 3 + references


def test_animate_segment_by_segment():
    """Every call gets the pose and the face of its segment, and one latent frame of reference."""
    model, pipe = pipeline("wan2.2-animate-14b")
    frames = 17  # two segments of 9 that share a frame
    calls = check(
        model,
        pipe,
        height=HEIGHT,
        width=WIDTH,
        segment_frame_length=FRAMES,
        image=picture(0),
        pose_video=film(frames),
        face_video=film(frames, 16, 16),
    )
    assert len(calls) == 2 * 4
    inputs = [model.graph_inputs(call) for call in calls]
    for given in inputs:
        assert {name: tuple(value.shape) for name, value in given.items()} == extents(model)
    for name in ("pose_hidden_states", "face_pixel_values"):
        assert not torch.equal(inputs[0][name], inputs[4][name])
    # Frame 0 is the reference image; the frame behind it is given from the second segment on.
    masks = [given["hidden_states"][0, 16:20, :, 0, 0].mean(0).tolist() for given in inputs]
    assert masks[0] == [1, 0, 0, 0] and masks[4] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("wan2.1-i2v-14b", ("image", "last_image"), "starts from one picture: leave last_image"),
        ("wan2.1-flf2v-14b", ("image",), "first picture to a last one: give image and last_image"),
        ("wan2.2-i2v-a14b", ("image", "last_image"), None),
    ],
)
def test_as_many_pictures_as_the_transformer_embeds(name, given, words):
    """Found in diffusers by sizes that do not match, after text and pictures were encoded."""
    _, pipe = pipeline(name)
    texts = torch.zeros(1, 512, pipe.transformer.config.text_dim)
    with rainfusion_trt.Pipeline(
        name, pipe=pipe, backend="torch", device="cpu", sparsity=0.0
    ) as made:
        pictures = {name: picture(seed) for seed, name in enumerate(given)}
        call = {**CLIP, **CALL, **pictures, "prompt_embeds": texts, "guidance_scale": 1.0}
        if words is None:
            assert made(**call).frames.shape[2] == 3
            return
        pipe.image_encoder.register_forward_pre_hook(lambda *_: pytest.fail("encoded"))
        with pytest.raises(InvalidInputError, match=words):
            made(**call)
