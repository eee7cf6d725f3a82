"""The trained demo model that ships with the package, and its card."""

import json
import re
from pathlib import Path

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.sampling import decode_video, sample_latents
from rainfusion_trt.demo.trained import TRAINED_CONFIG, TRAINED_SIZE

FOLDER = Path(rainfusion_trt.__file__).parent / "demo" / "bigbuckbunny"
LARGEST = 12e6  # bytes of all weights


def test_weights_are_small_and_of_this_architecture():
    weights = list(FOLDER.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) < LARGEST
    config = json.loads((FOLDER / "transformer" / "config.json").read_text())
    assert {key: config[key] for key in TRAINED_CONFIG} == TRAINED_CONFIG


def test_card_says_what_the_report_says():
    card = (FOLDER / "README.md").read_text()
    report = json.loads((FOLDER / "report.json").read_text())
    assert report["steps_done"] == report["settings"]["steps"]
    assert f"{report['settings']['steps']:,} steps" in card
    nearest = [sample["of_its_clip"] for sample in report["samples"]]
    said = re.search(r"are ([\d., and]+) dB from the nearest", card)
    assert said is not None
    numbers = re.findall(r"\d+\.\d", said.group(1))
    assert numbers == [f"{each['psnr']:.1f}" for each in nearest]
    means = sorted(f"{each['mean_psnr']:.1f}" for each in nearest)
    assert f"{means[0]} to {means[-1]} dB" in card


@pytest.mark.slow
def test_it_samples_the_clip():
    """A video from noise is nearer to what the full run made of that noise than a mean picture."""
    from diffusers import CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    assert isinstance(pipe.vae, PatchCodec)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        latents = sample_latents(pipe, "bigbuckbunny", TRAINED_SIZE, steps=4, seed=0)
    video = decode_video(latents, pipe.vae).astype(float)
    assert video.shape == (49, 256, 320, 3)
    # Meadow: green leads in the lower part, and the picture has structure.
    lower = video[:, 192:].mean((0, 1, 2))
    assert lower[1] > lower[0] + 10
    assert lower[1] > lower[2] + 20
    assert video.std() > 40
