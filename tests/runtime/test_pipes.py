"""Which diffusers pipeline makes a call, on a tiny CogVideoX with seeded random weights."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    LTX2Pipeline,
    LTXI2VLongMultiPromptPipeline,
    WanVACEPipeline,
)

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.runtime.call_arguments import check_size, complete_arguments, step_count
from rainfusion_trt.runtime.media import size_of_image
from rainfusion_trt.runtime.one_call import Caller
from rainfusion_trt.runtime.pipes import Pipes, modes_of

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu", backend="torch")
MODEL = get_model("cogvideox")
SIZE = VideoSize(9, 64, 96)
CLIP = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
CALL = {
    "prompt": "a fox",
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 2,
    "output_type": "latent",
}


@pytest.fixture(autouse=True)
def classes(monkeypatch):
    monkeypatch.setattr(MODEL, "other_pipelines", ("CogVideoXVideoToVideoPipeline",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline(MODEL, size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(checkpoint):
    with Pipeline(
        "cogvideox", checkpoint=checkpoint, dtype=torch.float32, sparsity=0.0
    ) as pipeline:
        pipeline.pipe.set_progress_bar_config(disable=True)
        yield pipeline


def plain(checkpoint, pipeline_class, **call) -> torch.Tensor:
    pipe = pipeline_class.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**CALL, generator=generator, max_sequence_length=16, **call).frames


def test_text_and_video_by_one_checkpoint(pipeline, checkpoint):
    """Each equals its diffusers pipeline; the second one is made once, of the same components."""
    clip = torch.from_numpy(CLIP).permute(0, 3, 1, 2)
    from_video = pipeline(**CALL, video=clip, strength=1.0, seed=0).frames
    from_text = pipeline(**CALL, num_frames=9, seed=0).frames
    again = pipeline(**CALL, video=list(CLIP), strength=1.0, seed=0).frames
    images = [tiny_image(frame) for frame in CLIP]
    wanted = plain(checkpoint, CogVideoXVideoToVideoPipeline, video=images, strength=1.0)
    # Unit scale; guidance multiplies float32 rounding by 6 in each of two steps.
    torch.testing.assert_close(from_video, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, from_video, atol=0, rtol=0)
    wanted = plain(checkpoint, CogVideoXPipeline, num_frames=9)
    torch.testing.assert_close(from_text, wanted, atol=1e-4, rtol=0)
    assert (from_video - from_text).abs().max() > 1e-2


def tiny_image(frame: np.ndarray):
    from PIL import Image

    return Image.fromarray(frame)


def test_the_second_pipeline_is_made_once_and_follows_the_first(pipeline):
    """Nor does it bring its components to one dtype, as diffusers' from_pipe."""
    pipeline.pipe.text_encoder.to(torch.bfloat16)
    pipes = Pipes(MODEL, pipeline.pipe, fixed=False)
    assert pipes.for_call(["prompt", "num_frames"]) is pipeline.pipe
    other = pipes.for_call(["prompt", "video"])
    assert type(other) is CogVideoXVideoToVideoPipeline and pipes.for_call(["video"]) is other
    assert other.text_encoder is pipeline.pipe.text_encoder and other.vae is pipeline.pipe.vae
    assert other.text_encoder.dtype is torch.bfloat16 and other.vae.dtype is torch.float32
    assert other.transformer is pipeline.pipe.transformer
    pipeline.pipe.scheduler = DDIMScheduler.from_config(pipeline.pipe.scheduler.config)
    assert pipes.for_call(["video"]).scheduler is pipeline.pipe.scheduler


def test_strength_leaves_out_steps(pipeline):
    call = {**CALL, "video": CLIP, "num_inference_steps": 4, "seed": 0}
    seen = []
    out = pipeline(
        **call, strength=0.5, schedule=[0.0, 0.0], progress=lambda *done: seen.append(done)
    )
    assert len(out.steps) == 2 and seen == [(0, 2), (1, 2), (2, 2)]
    assert len(pipeline(**call).steps) == 3  # diffusers' own strength is 0.8
    pipeline.pipe.encode_prompt = None  # would fail otherwise
    for change, words in (
        ({"strength": 0.2}, "strength=0.2 leaves none of 4 steps"),
        ({"strength": 1.5}, r"strength is 1.5: give a number in \[0, 1\]"),
        ({"strength": True}, "strength is True"),
        ({"strength": 0.5, "schedule": [0.0] * 4}, "4 values for 2 steps"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            pipeline(**call, **change)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"image": CLIP[0]}, "cogvideox-5b takes no image: no pipeline of it does .CogVideoXPipe"),
        ({"image": CLIP[0], "video": CLIP}, "takes no image with video"),
        ({"strength": 0.5}, "CogVideoXVideoToVideoPipeline starts from video: give video="),
        ({"negativ_prompt": "x"}, "takes no negativ_prompt: is negative_prompt meant.$"),
        ({"sparisty": 0.5}, "CogVideoXPipeline takes no sparisty: is sparsity meant.$"),
        ({"sink_frames": 2}, "takes no sink_frames: sink_frames is of all calls, give it to Pip"),
        ({"video": CLIP[:7]}, r"frames=7 must be 4k \+ 1 for cogvideox-5b"),
        ({"video": CLIP, "num_frames": 9}, "which takes video, takes no num_frames: leave"),
        ({"video": "/no/such.mp4"}, "video /no/such.mp4 does not exist"),
        ({"video": [CLIP, CLIP[:5]]}, "clips of 5 and 9 frames"),
        ({"video": []}, "video has no frames"),
    ],
)
def test_what_is_refused_before_work_starts(pipeline, call, words):
    pipeline.pipe.encode_prompt = None  # would fail otherwise
    with pytest.raises(InvalidInputError, match=words) as error:
        pipeline(**{**CALL, **call})
    assert "\n" not in str(error.value)


def test_a_pipeline_of_the_users_own_makes_every_call():
    pipe = tiny_pipeline(MODEL, size=SIZE)
    with Pipeline(pipe=pipe) as pipeline:
        words = "CogVideoXPipeline takes no video; CogVideoXVideoToVideoPipeline does: make one of"
        with pytest.raises(InvalidInputError, match=words):
            pipeline(**CALL, video=CLIP)
        with pytest.raises(InvalidInputError, match="CogVideoXPipeline takes no image$"):
            pipeline(**CALL, image=CLIP[0])


def named(checkpoint, folder, name):
    """The checkpoint with another class in its model_index.json."""
    for entry in checkpoint.iterdir():
        (folder / entry.name).symlink_to(entry)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.unlink()
    index.write_text(json.dumps({**content, "_class_name": name}))
    return folder


def test_the_class_that_the_checkpoint_names_goes_first(checkpoint, tmp_path):
    folder = named(checkpoint, tmp_path, "CogVideoXVideoToVideoPipeline")
    arguments = {"checkpoint": folder, "dtype": torch.float32, "method": "rainfusion"}
    with Pipeline("cogvideox", **arguments) as pipeline:
        assert type(pipeline.pipe) is CogVideoXVideoToVideoPipeline
        with pytest.raises(InvalidInputError, match="starts from video"):
            pipeline(**CALL)
        pipeline.pipe.set_progress_bar_config(disable=True)
        assert len(pipeline(**CALL, num_frames=9, seed=0).steps) == 2  # which only text has


def test_classes_that_diffusers_does_not_have(checkpoint, tmp_path, caplog):
    folder = named(checkpoint, tmp_path, "FoxPipeline")
    with Pipeline("cogvideox", checkpoint=folder, dtype=torch.float32) as pipeline:
        assert type(pipeline.pipe) is CogVideoXPipeline
    assert "names the pipeline FoxPipeline, which this diffusers does not have" in caplog.text


def test_checkpoints_that_are_none(checkpoint, tmp_path):
    folder = named(checkpoint, tmp_path, "StableDiffusionPipeline")
    with pytest.raises(InvalidInputError, match="is of a StableDiffusionPipeline, which has no tr"):
        Pipeline("cogvideox", checkpoint=folder, dtype=torch.float32)
    (folder / "model_index.json").unlink()
    with pytest.raises(InvalidInputError, match="is no diffusers directory or hub id"):
        Pipeline("cogvideox", checkpoint=folder, dtype=torch.float32)


# -- what a pipeline takes no argument for ---------------------------------------------------------


class OfImage:
    """As HunyuanVideo-1.5's from an image: the clip has the image's shape."""

    target_size = 640

    class video_processor:  # noqa: N801
        @staticmethod
        def calculate_default_height_width(height, width, target_size):
            return (480, 848) if width > height else (848, 480)

    def __call__(self, image, num_frames=121, num_inference_steps=50):
        raise NotImplementedError


def test_the_size_of_an_image_counts_where_the_pipeline_asks_for_none():
    image = tiny_image(CLIP[0])
    assert size_of_image(OfImage(), {"image": image}) == (480, 848)
    arguments = {"image": image, "num_frames": 121}
    check_size(VideoSize(121, 480, 848), OfImage(), arguments)
    check_size(None, OfImage(), arguments)
    assert size_of_image(OfImage(), {"image": [image, image]}) is None  # for diffusers to refuse
    with pytest.raises(InvalidInputError, match="121x480x848 .* only: .* that of the image"):
        check_size(VideoSize(121, 720, 1280), OfImage(), arguments)


class OfSegments:
    """As Wan Animate's, which asks for the frames of a segment."""

    transformer = SimpleNamespace(config={})

    def __call__(self, height=720, width=1280, segment_frame_length=77, num_inference_steps=20):
        raise NotImplementedError


def test_the_frames_of_a_segment_are_those_of_the_graph():
    size = VideoSize(33, 480, 832)
    arguments = complete_arguments(OfSegments(), size, {})
    assert arguments == {"height": 480, "width": 832, "segment_frame_length": 33}
    check_size(size, OfSegments(), arguments)
    with pytest.raises(InvalidInputError, match="77x480x832 .* 33x480x832 only"):
        check_size(size, OfSegments(), {**arguments, "segment_frame_length": 77})


def test_frames_of_references_are_none_of_the_clip():
    """VACE's pipeline adds them: a graph of 85 frames makes a clip of 81 with one reference."""
    model, image = get_model("wan2.1-vace-1.3b"), tiny_image(CLIP[0])
    size = VideoSize(85, 480, 832)
    assert model.clip_of_graph(size, {}) == size
    for images, frames in ((image, 81), ([image, image], 77), ([[image]], 81)):
        assert model.clip_of_graph(size, {"reference_images": images}).frames == frames
    with pytest.raises(InvalidInputError, match="images add 3 latent .* 9x64x96 has none left"):
        model.clip_of_graph(VideoSize(9, 64, 96), {"reference_images": [image] * 3})
    model = get_model("skyreels-v2-df-14b")  # whose last image is a latent frame behind the clip
    assert model.clip_of_graph(size, {"image": image}) == size
    assert model.clip_of_graph(size, {"image": image, "last_image": image}).frames == 81


def arguments_of(pipeline_class, model, size: VideoSize, given: dict) -> dict:
    """What a graph of one size makes of a call's arguments."""
    kind = type("Pipe", (), {"__call__": pipeline_class.__call__, "config": {}})
    pipe = kind()
    pipe.transformer = SimpleNamespace(config={})
    artifacts = SimpleNamespace(model=model, size=size, dynamic=False)
    denoiser = SimpleNamespace(name="onnxruntime", components=())
    return Caller(artifacts, denoiser, None, False, None)._arguments(pipe, given)


def test_a_graph_of_one_size_takes_references():
    model, size = get_model("wan2.1-vace-1.3b"), VideoSize(85, 480, 832)
    given = {"reference_images": [tiny_image(CLIP[0])]}
    assert arguments_of(WanVACEPipeline, model, size, given)["num_frames"] == 81
    assert arguments_of(WanVACEPipeline, model, size, {**given, "num_frames": 81})
    with pytest.raises(InvalidInputError, match="85x480x832"):
        arguments_of(WanVACEPipeline, model, size, {**given, "num_frames": 85})


def test_guidance_that_no_graph_is_of_is_refused_before_work_starts():
    """It is on by default in LTX-2's pipelines."""
    model, size = get_model("ltx-2"), VideoSize(121, 512, 768)
    off = {"stg_scale": 0.0, "audio_stg_scale": 0.0}
    off |= {"modality_scale": 1.0, "audio_modality_scale": 1.0}
    assert arguments_of(LTX2Pipeline, model, size, off).items() >= off.items()
    for name, usual in (("stg_scale", 1), ("audio_modality_scale", 3)):
        given = {key: value for key, value in off.items() if key != name}
        with pytest.raises(UnsupportedError, match=f"by {name}={usual} .* pass stg_scale=0, audio"):
            arguments_of(LTX2Pipeline, model, size, given)


def test_a_seed_goes_before_that_of_the_pipeline():
    """LTX's pipeline for long clips takes a generator only where it has no seed: by default 0."""
    kind = type("Pipe", (), {"__call__": LTXI2VLongMultiPromptPipeline.__call__})
    pipe = kind()
    pipe.transformer = SimpleNamespace(config={})
    generator = torch.Generator().manual_seed(5)
    arguments = complete_arguments(pipe, None, {"generator": generator})
    assert arguments == {"generator": generator, "seed": None}
    assert complete_arguments(pipe, None, {}) == {}


def test_a_video_has_whole_tokens():
    """As CogVideoXVideoToVideoPipeline wants it, of two latent frames a token."""
    model = get_model("cogvideox1.5")
    for frames in (5, 77, 85):
        model.check_frames(frames)
    with pytest.raises(InvalidInputError, match=r"frames=81 .* 8k \+ 5 .* such as 77 or 85"):
        model.check_frames(81)
    MODEL.check_frames(81)
    size = VideoSize(81, 768, 1360)  # of a graph, 22 latent frames
    assert model.clip_of_graph(size, {"video": CLIP}) == VideoSize(85, 768, 1360)
    assert model.clip_of_graph(size, {}) == MODEL.clip_of_graph(size, {"video": CLIP}) == size


class OfConditions:
    """As LTX's with conditions, whose `strength` is theirs."""

    def get_timesteps(self):
        raise NotImplementedError

    def __call__(self, strength=1.0, denoise_strength=1.0, num_inference_steps=50):
        raise NotImplementedError


def test_modes_follow_from_the_classes(monkeypatch):
    """Of text, image and video, by what their calls take and cannot do without."""
    for classes, modes in {
        (): ("text",),
        ("CogVideoXImageToVideoPipeline",): ("text", "image"),
        ("WanVideoToVideoPipeline", "WanImageToVideoPipeline"): ("text", "image", "video"),
        ("CogVideoXFunControlPipeline",): ("text", "control_video"),
        ("OfAnotherReleasePipeline",): ("text",),
    }.items():
        monkeypatch.setattr(MODEL, "other_pipelines", classes)
        assert modes_of(MODEL) == modes
    monkeypatch.setattr(MODEL, "pipeline_class", "LTXConditionPipeline")  # with and without
    monkeypatch.setattr(MODEL, "other_pipelines", ())
    assert modes_of(MODEL) == ("text", "image", "video")
    monkeypatch.setattr(MODEL, "pipeline_class", "LTXImageToVideoPipeline")
    assert modes_of(MODEL) == ("image",)


def test_strength_of_conditions_is_no_share_of_the_steps():
    assert step_count(OfConditions(), {"strength": [0.1, 0.5]}) == 50
    assert step_count(OfConditions(), {"strength": 0.1, "denoise_strength": 0.5}) == 25
