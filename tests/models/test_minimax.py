"""MiniMax-H3 under `enable`, with sequences as diffusers' blocks pack them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from diffusers import MiniMaxH3Transformer3DModel
from diffusers.modular_pipelines.minimax_h3.before_denoise import (
    MiniMaxH3PrepareLayoutStep,
    MiniMaxH3Ref2VAPrepareLayoutStep,
    MiniMaxH3SetTimestepsStep,
)

import rainfusion_trt
from rainfusion_trt import Pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator import ops  # noqa: F401  (registers torch.ops.rainfusion)
from tests.helpers.routed_parity import TOLERANCE, check_parity, outputs, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("minimax-h3")
SITES = ("transformer_blocks.0.attn", "transformer_blocks.1.attn")
PATCH, CHANNELS, AUDIO, VIDEO = (1, 2, 2), 2, 2, 0
GRID = (7, 6, 10)  # of the generated clip
TARGET = {
    "num_latent_frames": GRID[0],
    "latent_height": 2 * GRID[1],
    "latent_width": 2 * GRID[2],
    "num_audio_latents": 19,
    "patch_size": PATCH,
    "audio_channels": CHANNELS,
    "audio_tag": AUDIO,
    "video_tag": VIDEO,
}


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float32)


def packed(task: str) -> tuple:
    """What diffusers' layout step of a task gives: rows, indices and conditioning rows."""
    tags = torch.ones(30, dtype=torch.long)
    if task != "text":
        tags[10:20] = VIDEO  # a picture that the text encoder saw
    if task in ("text", "keyframes"):
        anchors = ("first", "last") if task == "keyframes" else ()
        build = MiniMaxH3PrepareLayoutStep.build_packed_sequence
        return build(tags, **TARGET, keyframe_anchors=anchors)
    references = [
        SimpleNamespace(kind="image", has_audio=False),
        SimpleNamespace(kind="video", has_audio=True),
        SimpleNamespace(kind="audio", has_audio=True),
    ]
    latents = [torch.zeros(1, 24, 1, 8, 4), torch.zeros(1, 24, 5, 4, 6)]
    sounds = [torch.zeros(8, 8), torch.zeros(12, 8)]
    build = MiniMaxH3Ref2VAPrepareLayoutStep.build_ref2va_packed_sequence
    return build(tags, references, latents, sounds, **TARGET)


def call_of(task: str, *, batch: int = 1, seed: int = 0) -> dict:
    """A forward as the denoising block makes it."""
    places, tags, video, audio, text, known_video, known_audio = packed(task)
    timestep, rows = MiniMaxH3SetTimestepsStep.build_row_timesteps(
        video, audio, known_video, known_audio, len(text), 0.3, 0.6, 0.999, 1.0
    )
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: int, channels: int) -> torch.Tensor:
        return torch.randn(batch, rows, channels, generator=generator)

    return {
        "hidden_states": drawn(len(video), 96),
        "audio_hidden_states": drawn(len(audio), 8),
        "encoder_hidden_states": drawn(len(text), 32),
        "timestep": timestep,
        "timestep_indices": rows,
        "token_tags": tags,
        "position_ids": places,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
        "attention_kwargs": None,
    }


def test_full_size():
    """Of 50 blocks, of which the two refiners of the text have attention too."""
    with torch.device("meta"):
        full = MiniMaxH3Transformer3DModel(**MODEL.config())
    assert model_of(full) is MODEL
    assert MODEL.attention_count(full.config) == len(full.transformer_blocks) == 50
    extents = MODEL.extents(MODEL.config(), MODEL.defaults.size, 1)
    assert [extents[f"grid_{axis}"] for axis in ("frames", "height", "width")] == [37, 24, 42]
    assert {name: extents[name] for name in MODEL.sequences} == MODEL.sequences
    with pytest.raises(InvalidInputError, match=r"frames=121 must be 17k \+ 5 .* such as 124"):
        MODEL.extents(MODEL.config(), VideoSize(121, 768, 1344), 1)


@pytest.mark.parametrize("task", ["text", "keyframes", "references"])
def test_only_the_generated_video_is_sparse(transformer, task, monkeypatch):
    """All that is no generated video comes before it, as the operator's text."""
    operator, seen = torch.ops.rainfusion.attention, []

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    for batch in (1, 2):
        check_parity(MODEL, transformer, call_of(task, batch=batch), SITES)
    call = call_of(task)
    target = call["video_indices"][-GRID[0] * GRID[1] * GRID[2] :]
    for query, _, _, grid, _, kv_len, text, *_ in seen:
        assert tuple(grid.shape) == GRID and kv_len is None and text == "first"
        # What follows the text is the generated clip and nothing else.
        others = query.shape[2] - grid.numel()
        assert torch.equal(torch.arange(others, query.shape[2]), target)


def test_examples_are_a_call_of_diffusers(transformer):
    inputs = MODEL.example_inputs(transformer, VideoSize(39, 192, 320), batch=2)
    call = MODEL.forward_kwargs(inputs)
    assert MODEL.layout(transformer, call).grid.shape == (12, 6, 10)
    check_parity(MODEL, transformer, call, SITES)


def moved(call: dict, places: torch.Tensor) -> dict:
    """The same rows in another order: `places` says where each row goes."""
    back = places.argsort()
    rows = ("timestep_indices", "token_tags", "position_ids")
    indices = ("video_indices", "audio_indices", "text_indices")
    return {**call, **{n: call[n][back] for n in rows}, **{n: places[call[n]] for n in indices}}


def test_sequences_of_another_order_are_refused(transformer):
    """The transformer itself computes the same for them; nothing here may be computed wrong."""
    call = call_of("keyframes")
    rows, clip = len(call["position_ids"]), GRID[0] * GRID[1] * GRID[2]
    order = torch.arange(rows)
    start, sound = rows - clip, rows - clip - 2 * TARGET["num_audio_latents"]
    columns = order[start:].view(GRID).transpose(1, 2).flatten()
    wrong = {  # where each row goes
        "text last": order.roll(30),
        "sound last": torch.cat([order[: start - 9], order[-9:], order[start - 9 : -9]]),
        "sound within": torch.cat(
            [order[: start - 9], order[-209:-200], order[start - 9 : -209], order[-200:]]
        ),
        "column by column": torch.cat([order[:start], columns]),
        "keyframes next to the clip": torch.cat(
            [order[:30], order[30:sound] + start - sound, order[sound:start] - sound + 30]
            + [order[start:]]
        ),
    }
    dense = outputs(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    try:
        for name, places in wrong.items():
            other = moved(call, places)
            with pytest.raises(UnsupportedError, match="one generated clip as the last") as error:
                outputs(transformer, other)
            assert "\n" not in str(error.value), name
    finally:
        rainfusion_trt.disable(transformer)
    for places in wrong.values():
        assert relative_error(outputs(transformer, moved(call, places)), dense) < TOLERANCE


def test_blocks_compile_and_the_whole_says_why_not():
    """Each block is a full graph; reading the grid can be in none."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    call = call_of("keyframes")
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    sparse = outputs(transformer, call)
    whole = torch.compile(transformer, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile_repeated_blocks"):
        outputs(whole, call)
    torch._dynamo.reset()
    transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert relative_error(outputs(transformer, call), sparse) < TOLERANCE
    torch._dynamo.reset()


def test_what_needs_a_graph_says_why_there_is_none(transformer, tmp_path):
    size = VideoSize(39, 192, 320)
    with pytest.raises(UnsupportedError, match="minimax-h3 cannot be exported.*position_ids") as e:
        export_model(MODEL, transformer, size, output=tmp_path / "m.onnx")
    assert "\n" not in str(e.value) and not any(tmp_path.iterdir())
    with pytest.raises(UnsupportedError, match=r"enable\(pipe\.transformer\)"):
        Pipeline(pipe=SimpleNamespace(transformer=transformer), backend="torch", device="cpu")
