"""Sound that a pipeline makes with its frames is kept, checked and written."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rainfusion_trt.errors import NotFiniteError
from rainfusion_trt.runtime.cli import _save
from rainfusion_trt.runtime.frames import make_frames
from rainfusion_trt.runtime.output import PipelineOutput

RATE = 24_000


class SoundPipe:
    """What LTX2Pipeline gives, at a sixth of a second."""

    vocoder = SimpleNamespace(config=SimpleNamespace(output_sampling_rate=RATE))

    def __init__(self, audio):
        self.audio = audio

    def __call__(self, output_type="np"):
        return SimpleNamespace(frames=np.zeros((1, 4, 16, 16, 3), np.float32), audio=self.audio)


def made(audio, **options):
    denoiser = SimpleNamespace(observe=lambda *_: nullcontext())
    run = SimpleNamespace(before_call=None, after_call=None, counting=lambda **_: nullcontext({}))
    return make_frames(SoundPipe(audio), denoiser, run, {}, **options)


def tone():
    times = torch.arange(RATE // 6) / RATE
    return torch.stack([torch.sin(2 * torch.pi * f * times) for f in (440, 1320)])[None]


def test_it_is_written_beside_the_frames(tmp_path):
    import av

    out = made(tone())
    result = PipelineOutput(out.frames, (), "torch", (), out.audio, out.audio_rate)
    _save(result, tmp_path / "clip.mp4", 24, overwrite=False)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.audio[0].rate == RATE
        heard = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    for channel, frequency in zip(heard, (440, 1320), strict=True):
        spectrum = np.abs(np.fft.rfft(channel[1024:3072]))  # AAC begins with silence
        assert abs(spectrum.argmax() * RATE / 2048 - frequency) < RATE / 2048


def test_nan_stops_the_run():
    audio = tone()
    audio[0, 1, 7] = torch.nan
    with pytest.raises(NotFiniteError, match="the sound is not finite"):
        made(audio)


def test_other_processes_than_the_first_keep_nothing():
    assert made(tone(), wanted=False).frames is None
