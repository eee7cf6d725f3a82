"""Pictures and clips among the arguments of calls: poses, faces, masks and references too."""

from __future__ import annotations

import functools
import re

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model, model_names
from rainfusion_trt.runtime.pipes import MEDIA, diffusers_classes, parameters_of

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu", backend="torch")
HEIGHT, WIDTH, FRAMES = 64, 96, 9
CALL = {
    "prompt_embeds": torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(0)),
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "height": HEIGHT,
    "width": WIDTH,
    "output_type": "latent",
    "sparsity": 0.0,
    "seed": 0,
}
# What has a picture or a clip in its name and is none: numbers, latents, embeddings, masks of
# texts, and objects of diffusers that hold a picture with its place.
_OTHERS = re.compile(
    r"num_|frame|embed|latents|attention_mask|scale|strength|seconds|timestep|crf|noise|"
    r"(reference_)?conditions$"
)


def test_every_picture_of_the_registry_is_read():
    found = {
        name
        for model in model_names()
        for one in diffusers_classes(get_model(model))
        for name in parameters_of(one)
        if re.search("image|video|mask|cond|reference", name) and not _OTHERS.search(name)
    }
    assert found == set(MEDIA)


def film(frames: int, height: int = HEIGHT, width: int = WIDTH) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in values]


def save(frames: list[Image.Image], folder) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(len(frames))]
    for frame, path in zip(frames, paths, strict=True):
        frame.save(path)
    return [str(path) for path in paths]


def pipeline_of(name: str):
    model = get_model(name)
    transformer = model.create(model.config("tiny"), dtype=torch.float32)
    return tiny_pipeline(transformer, getattr(diffusers, model.pipeline_class))


@pytest.fixture(scope="module")
def vace():
    with Pipeline(pipe=pipeline_of("wan2.1-vace-1.3b")) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def animate():
    with Pipeline(pipe=pipeline_of("wan2.2-animate-14b")) as pipeline:
        yield pipeline


def test_control_mask_and_references_of_every_form(vace, tmp_path):
    video, references = film(FRAMES), film(2, 32, 48)
    mask = [Image.new("L", (WIDTH, HEIGHT), 255 * (index > 2)) for index in range(FRAMES)]
    call = {**CALL, "num_frames": FRAMES}
    wanted = vace(**call, video=video, mask=mask, reference_images=references).frames
    grey = [image.convert("RGB") for image in mask]
    files = {
        "video": save(video, tmp_path / "video"),
        "mask": save(grey, tmp_path / "mask"),
        "reference_images": save(references, tmp_path / "references"),
    }
    assert torch.equal(vace(**call, **files).frames, wanted)
    arrays = {
        "video": np.stack([np.asarray(frame) for frame in video]),
        "mask": torch.stack([torch.from_numpy(np.asarray(frame).copy()) for frame in mask])[
            :, None
        ],
        "reference_images": [references],
    }
    assert torch.equal(vace(**call, **arrays).frames, wanted)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"video": film(FRAMES, 32, 48)}, "video has 48x32 pixels .* and the clip 96x64"),
        ({"video": film(FRAMES, 128, 128)}, "video has 128x128 pixels"),
        ({"video": film(FRAMES + 4)}, "video has 13 frames and the clip 9"),
        ({"video": ["/no.png"] * FRAMES}, "frame 0 of video /no.png does not exist"),
        ({"mask": film(FRAMES)}, "`mask` can only be passed if `video`"),
        ({"video": film(FRAMES), "mask": film(5)}, "Length of `video` 9 and `mask` 5"),
        ({"reference_images": ["/no.png"]}, "reference_images /no.png does not exist"),
    ],
)
def test_a_control_that_does_not_fit_is_refused_before_work(vace, monkeypatch, given, words):
    monkeypatch.setattr(vace.pipe, "encode_prompt", None)  # would fail otherwise
    with pytest.raises(InvalidInputError, match=words):
        vace(**CALL, num_frames=FRAMES, **given)


def test_a_larger_control_of_the_same_shape_is_made_smaller(vace):
    made = vace(**CALL, num_frames=FRAMES, video=film(FRAMES, 2 * HEIGHT, 2 * WIDTH)).frames
    assert made.shape[2:] == (3, 8, 12)


def test_a_graph_takes_no_shorter_control():
    model = get_model("wan2.1-vace-1.3b")
    call = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "video": film(5)}
    model.check_media(call, exported=False)  # diffusers pads it
    with pytest.raises(InvalidInputError, match="video has 5 frames and the clip 9"):
        model.check_media(call, exported=True)


def test_poses_and_faces_of_every_form(animate, tmp_path):
    given = {"pose_video": film(FRAMES), "face_video": film(FRAMES, 16, 16)}
    call = {**CALL, "image": film(1)[0], "segment_frame_length": FRAMES}
    wanted = animate(**call, **given).frames
    files = {name: save(frames, tmp_path / name) for name, frames in given.items()}
    assert torch.equal(animate(**call, **files).frames, wanted)


def test_what_animate_needs_is_named(animate):
    with pytest.raises(InvalidInputError, match="WanAnimatePipeline starts from pose_video"):
        animate(**CALL, image=film(1)[0], segment_frame_length=FRAMES)


@pytest.mark.parametrize(
    "option",
    [
        *("--pose-video", "--face-video", "--background-video", "--mask-video", "--mask"),
        *("--control-video", "--reference-image"),
    ],
)
def test_the_command_reads_them_before_anything_is_loaded(tmp_path, option):
    target = ("--output", str(tmp_path / "x.mp4"), "--checkpoint", str(tmp_path))
    result = CliRunner().invoke(app, ["run", "--prompt", "x", *target, option, "/no"])
    assert result.exit_code == 2, result.output
    assert "/no does not exist" in result.stderr
