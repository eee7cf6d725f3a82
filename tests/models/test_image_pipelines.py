"""What diffusers' pipelines from an image or a video pass, through the graph's inputs and back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
)
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.models import VideoModel, VideoSize, get_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Calls(list):
    """The keyword arguments of every call of a transformer, with its output."""

    def __init__(self, model: VideoModel, transformer: nn.Module, patch: pytest.MonkeyPatch):
        self.model, self.original = model, transformer.forward

        def forward(**call):
            self.append((call, self.original(**call)[0]))
            return self[-1][1:]

        patch.setattr(transformer, "forward", forward)

    @torch.no_grad()
    def check(self, transformer: nn.Module, size: VideoSize, batch: int) -> list[dict[str, Tensor]]:
        """The graph inputs of each call: of the shapes stated, and nothing is lost."""
        expected = self.model.example_inputs(transformer, size, batch=batch)
        found = []
        for call, sample in self:
            inputs = self.model.graph_inputs(call)
            assert {n: (t.dtype, t.shape) for n, t in inputs.items()} == {
                n: (t.dtype, t.shape) for n, t in expected.items()
            }
            again = self.original(**self.model.forward_kwargs(inputs), return_dict=False)[0]
            # One number for the batch becomes one an element, whose products may sum otherwise.
            torch.testing.assert_close(again, sample, atol=1e-5, rtol=0)
            found.append(inputs)
        return found


class ImageVAE:
    """A VAE whose latents are means of the image, for pipelines that return latents."""

    dtype = torch.float32
    temporal_compression_ratio = 4
    config = SimpleNamespace(latent_channels=4, scaling_factor=0.5)

    def __init__(self, pixels: int) -> None:
        self.spatial_compression_ratio = pixels

    def encode(self, image: Tensor) -> SimpleNamespace:
        means = nn.functional.avg_pool3d(image, (1, *[self.spatial_compression_ratio] * 2))
        return SimpleNamespace(latents=means[:, [0, 1, 2, 0]])


def picture(width: int, height: int) -> Image.Image:
    """An image that is brighter to the right and to the bottom."""
    across = torch.linspace(0, 1, width) + torch.linspace(0, 0.9, height)[:, None]
    return Image.fromarray((across * 127).to(torch.uint8).numpy()).convert("RGB")


# -- CogVideoX -------------------------------------------------------------------------------------

FRAMES = [picture(96, 64)] * 9


@pytest.mark.parametrize(
    ("name", "pipeline", "given"),
    [
        ("cogvideox-5b-i2v", None, {"image": FRAMES[0], "num_frames": 9}),
        ("cogvideox1.5-5b-i2v", None, {"image": FRAMES[0], "num_frames": 9}),
        ("cogvideox-fun-5b-control", None, {"control_video": FRAMES}),
        ("cogvideox-5b", "CogVideoXVideoToVideoPipeline", {"video": FRAMES, "strength": 1.0}),
        ("cogvideox-2b", "CogVideoXVideoToVideoPipeline", {"video": FRAMES, "strength": 1.0}),
    ],
)
def test_cogvideox(name, pipeline, given, monkeypatch):
    model, size = get_model(name), VideoSize(9, 64, 96)
    assert pipeline in (None, *model.other_pipelines)
    pipe = tiny_pipeline(model, size=size, pipeline=pipeline)
    calls = Calls(model, pipe.transformer, monkeypatch)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt="a fox",
        height=64,
        width=96,
        num_inference_steps=1,
        output_type="latent",
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
        **given,
    )
    (inputs,) = calls.check(pipe.transformer, size, 2)  # guidance is a batch of 2
    if "image" in given:
        image = inputs["hidden_states"][:, :, 16:]
        assert image[:, 0].any() and not image[:, 1:].any()
    if model.has_ofs:
        assert inputs["ofs"].tolist() == [2.0, 2.0]


# -- HunyuanVideo ----------------------------------------------------------------------------------

SYSTEM, HEADER_END, IMAGE_TOKEN, PADDING, WORD = 103, 7, 9, 0, 3


class Tokenizer:
    """Of the pipeline's template: a system prompt with an image in it, the prompt, and the end."""

    def __call__(self, prompts, *, max_length: int, **_) -> SimpleNamespace:
        ids = torch.full((len(prompts), max_length), PADDING)
        for row, prompt in zip(ids, prompts, strict=True):
            words = prompt.split("<|end_header_id|>")[2].count("word")
            end = [WORD, WORD, WORD, HEADER_END, WORD]  # of the user's turn, the assistant, 2 lines
            text = [WORD] * SYSTEM + [WORD] * words + end
            text[2] = text[SYSTEM - 1] = HEADER_END
            text[5] = IMAGE_TOKEN
            row[: len(text)] = torch.tensor(text)
        return SimpleNamespace(input_ids=ids, attention_mask=(ids != PADDING).long())

    def convert_tokens_to_ids(self, token: str) -> int:
        return {"<|end_header_id|>": HEADER_END}[token]


class Llava:
    """A text encoder whose states are zero at padding, and random elsewhere."""

    config = SimpleNamespace(image_token_index=IMAGE_TOKEN, pad_token_id=PADDING)
    dtype = torch.float32

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **_) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(*input_ids.shape, 32, generator=generator)
        return SimpleNamespace(hidden_states=[states * attention_mask[..., None]] * 3)


@pytest.mark.parametrize(
    ("name", "image_tokens"), [("hunyuanvideo-i2v", 144), ("hunyuanvideo-i2v-33ch", 288)]
)
def test_hunyuanvideo(name, image_tokens, monkeypatch):
    """Two prompts in a batch: image tokens count as valid, the padding behind prompts does not."""
    model, size = get_model(name), VideoSize(9, 64, 96)
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    pipeline = HunyuanVideoImageToVideoPipeline(
        text_encoder=Llava(),
        tokenizer=Tokenizer(),
        transformer=transformer,
        vae=ImageVAE(8),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=lambda image, **_: SimpleNamespace(pixel_values=torch.zeros(2, 3, 8, 8)),
    )
    pipeline.set_progress_bar_config(disable=True)
    calls = Calls(model, transformer, monkeypatch)
    pipeline(
        image=[picture(96, 64)] * 2,
        prompt=["word " * 7, "word " * 31],
        pooled_prompt_embeds=torch.randn(2, 16),
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=6.0,
        output_type="latent",
    )
    text = image_tokens + 252
    for inputs in calls.check(transformer, size, 2):
        mask = inputs["encoder_attention_mask"]
        valid = [image_tokens + 7 + 1, image_tokens + 31 + 1]  # the line break behind the prompt
        assert mask.shape == (2, text) and mask.sum(1).tolist() == valid
        assert (mask.diff(dim=1) <= 0).all()  # padding is at the end alone
        hidden_states = inputs["encoder_hidden_states"]
        assert torch.equal(hidden_states.abs().amax(dim=2) > 0, mask.bool())
        layout = model.layout(transformer, model.forward_kwargs(inputs))
        assert layout.text_tokens == text
        assert layout.kv_len.tolist() == [3 * 4 * 6 + length for length in valid]
        latents = inputs["hidden_states"]
        if model.image == "token_replace":
            assert torch.equal(latents[0, :, 0], latents[1, :, 0])  # no noise in the first frame
            assert not torch.equal(latents[0, :, 1], latents[1, :, 1])
        else:
            assert latents[:, 4:, 0].any() and not latents[:, 4:, 1:].any()
            assert (latents[:, 8, 0] == 1).all()


# -- HunyuanVideo-1.5 ------------------------------------------------------------------------------


class ImageEncoder(nn.Module):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(1)
        return SimpleNamespace(last_hidden_state=torch.randn(1, 729, 1152, generator=generator))


class Pixels:
    def preprocess(self, images, **_) -> BatchFeature:
        return BatchFeature({"pixel_values": torch.zeros(1, 3, 8, 8)})


@pytest.mark.parametrize("name", ["hunyuanvideo-1.5-i2v", "hunyuanvideo-1.5-i2v-step-distilled"])
def test_hunyuanvideo15(name, monkeypatch):
    model, size = get_model(name), VideoSize(9, 96, 128)
    config = {**model.config("tiny", layers=1), "target_size": 112}  # 96 x 128 for a 3:4 image
    transformer = model.create(config, dtype=torch.float32)
    pipeline = HunyuanVideo15ImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=ImageVAE(16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(6.0),
        image_encoder=ImageEncoder(),
        feature_extractor=Pixels(),
    )
    pipeline.set_progress_bar_config(disable=True)
    calls = Calls(model, transformer, monkeypatch)
    prompts = {}
    for sign, length in (("", 70), ("negative_", 5)):
        prompts[f"{sign}prompt_embeds"] = torch.randn(1, 1000, 32)
        prompts[f"{sign}prompt_embeds_mask"] = (torch.arange(1000) < length)[None].long()
        prompts[f"{sign}prompt_embeds_2"] = torch.randn(1, 256, 24)
        prompts[f"{sign}prompt_embeds_mask_2"] = (torch.arange(256) < 9)[None].long()
    pipeline(
        image=picture(128, 96), num_frames=9, num_inference_steps=2, output_type="latent", **prompts
    )
    found = calls.check(transformer, size, 1)
    assert len(found) == 4  # guidance as two calls
    for inputs, length in zip(found, (70, 5, 70, 5), strict=True):
        layout = model.layout(transformer, model.forward_kwargs(inputs))
        assert layout.kv_len.tolist() == [3 * 6 * 8 + 729 + length + 9]
        latents = inputs["hidden_states"]
        assert latents[:, 4:, 0].any() and not latents[:, 4:, 1:].any()
    if model.meanflow:  # each step knows the next one's timestep
        steps = [inputs["timestep"].item() for inputs in found[::2]]
        assert [inputs["timestep_r"].item() for inputs in found[::2]] == [steps[1], 0.0]
