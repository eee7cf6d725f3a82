"""Engines on several GPUs: attention to the bit, whole clips, captured graphs, a process that ends.

Each test starts its processes as ``rainfusion-trt run --gpus`` does.
"""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from rainfusion_trt import Pipeline, build_engine
from rainfusion_trt.engine import EngineRecipe
from rainfusion_trt.errors import ParallelError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.parallel.launch import launch
from rainfusion_trt.plugin.build import source_directory

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group(__name__),
    pytest.mark.skipif(GPUS < 2, reason="fewer than two GPUs here"),
]

MODEL = get_model("wan2.1-14b")  # 3 heads in its tiny form, which 2 does not divide
SIZE = VideoSize(9, 80, 112)  # 3 x 5 x 7 tokens
# As in test_pipeline_engine.py: products of fewer rows may add up in another order.
TOLERANCE = 2e-2

COMMON = """
    import os, sys
    sys.path[:0] = [{root!r}, {tests!r}]
    import torch
    from rainfusion_trt import ParallelConfig, Pipeline, rainfusion_attention
    from rainfusion_trt.operator.native import Problem, Tensors, load_library
    from rainfusion_trt.operator.native_parallel import ParallelCalls
    from rainfusion_trt.operator.settings import AttentionSettings
    from rainfusion_trt.parallel.exchange import Exchange
    from rainfusion_trt.parallel.launch import reporting
    from rainfusion_trt.parallel.team import Team
    from helpers.wan_pipeline import tiny_pipeline
    from rainfusion_trt.models import get_model
    rank = int(os.environ["RANK"])

    def transformer():
        model = get_model("wan2.1-14b")
        return model.create(model.config("tiny"), dtype=torch.float16, seed=0)

    def made(pipeline):
        size = {{"num_frames": 9, "height": 80, "width": 112, "num_inference_steps": 3}}
        call = {{**size, "guidance_scale": 4.0, "output_type": "latent", "seed": 0}}
        return pipeline("a fox", schedule=[0.0, 0.5, 0.3], **call).frames
"""


def run(body: str, processes: int, folder: Path) -> None:
    """Run a program in so many processes; an error of one is raised here."""
    root = source_directory()
    common = COMMON.format(root=str(root), tests=str(root / "tests"))
    program = folder / "program.py"
    program.write_text(textwrap.dedent(common) + textwrap.dedent(body))
    launch((sys.executable, str(program)), processes)


ATTENTION = """
with reporting():
    world = int(os.environ["WORLD_SIZE"])
    team = Team.join(ParallelConfig(ulysses=world), None)
    with team.together():
        exchange = Exchange(team, load_library())
        calls, share = ParallelCalls(load_library()), exchange.share
        for batch, heads, size, text, words in (
            (1, 5, 64, "none", 0), (2, 4, 128, "last", 37), (1, 6, 96, "first", 11)
        ):
            for method in ("rainfusion", "rainfusion2", "piecewise"):
                settings = AttentionSettings(method=method, text=text)
                grid = (5, 9, 11)
                generator = torch.Generator("cuda").manual_seed(1)
                shape = (3, batch, heads, 495 + words, size)
                whole = torch.randn(shape, generator=generator, device="cuda").half()
                tokens = torch.arange(495, device="cuda").tensor_split(world)[rank]
                spare = torch.arange(words, device="cuda")
                parts = [spare, words + tokens] if text == "first" else [tokens, 495 + spare]
                rows = torch.cat(parts)
                local = [x[:, :, rows].contiguous() for x in whole]
                out = torch.empty_like(local[0])
                sparsity = torch.tensor([0.6], device="cuda")
                kv_len = None
                if text == "last":
                    kv_len = torch.tensor([500, 532], device="cuda", dtype=torch.int32)
                problem = Problem.of(local[0], grid, settings)
                bytes_ = calls.workspace_size(problem, share)
                space = torch.empty(bytes_, dtype=torch.uint8, device="cuda")
                tensors = Tensors.of(*local, out, sparsity=sparsity, kv_len=kv_len)
                stream = torch.cuda.current_stream().cuda_stream
                with exchange.call():
                    calls.attention(problem, tensors, space.data_ptr(), bytes_, stream)
                exchange.finish()
                wanted = rainfusion_attention(
                    *whole, grid, sparsity=sparsity, kv_len=kv_len, **settings.attributes()
                )[:, :, rows]
                for b in range(batch):
                    real = rows < (kv_len[b] if kv_len is not None else 10**6)
                    assert torch.equal(out[b][:, real], wanted[b][:, real]), (method, text)
        exchange.close()
"""


def test_attention_is_that_of_one_gpu_to_the_bit(tmp_path):
    for processes in sorted({2, min(GPUS, 4)}):
        run(ATTENTION, processes, tmp_path)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, plugin_library) -> Path:
    from rainfusion_trt.export import export_model

    path = tmp_path_factory.mktemp("shared") / "tiny.onnx"
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float16, seed=0)
    # Of so small a clip piecewise would have windows that all meet.
    settings = AttentionSettings(method="rainfusion2")
    export_model(MODEL, transformer, SIZE, output=path, settings=settings, parallel=True)
    clip = {"frames": 9, "height": 80, "width": 112, "batch": 1}
    recipe = {"model": MODEL.name, "precision": "float16", "sizes": {"clip": clip}}
    return build_engine(path, recipe=EngineRecipe.model_validate(recipe), gpus="1-3")


CLIP = """
with reporting():
    pipe = tiny_pipeline(transformer()).to(torch.float16)
    config = ParallelConfig(ulysses={ulysses}, guidance={guidance})
    with Pipeline(pipe=pipe, engine={engine!r}, parallel=config, cuda_graph={graph}) as pipeline:
        frames = made(pipeline)
        again = made(pipeline)
    if rank == 0:
        assert torch.equal(frames, again)
        torch.save(frames.cpu(), {output!r})
    else:
        assert frames is None
"""


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("ulysses", "guidance", "graph"), [(2, 1, False), (2, 1, True), (1, 2, False), (2, 2, False)]
)
def test_a_clip_is_that_of_one_gpu(engine, tmp_path, ulysses, guidance, graph):
    from helpers.wan_pipeline import tiny_pipeline

    if ulysses * guidance > GPUS:
        pytest.skip(f"{GPUS} GPUs here")
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float16, seed=0)
    size = {"num_frames": 9, "height": 80, "width": 112, "num_inference_steps": 3}
    call = {**size, "guidance_scale": 4.0, "output_type": "latent", "seed": 0}
    with Pipeline(pipe=tiny_pipeline(transformer).to(torch.float16), engine=engine) as alone:
        wanted = alone("a fox", schedule=[0.0, 0.5, 0.3], **call).frames.cpu().float()
    output = str(tmp_path / "frames.pt")
    options = {"ulysses": ulysses, "guidance": guidance, "graph": graph}
    body = CLIP.format(engine=str(engine), output=output, **options)
    run(body, ulysses * guidance, tmp_path)
    found = torch.load(output).float()
    assert ((found - wanted).norm() / wanted.norm()).item() < TOLERANCE


LOST = """
with reporting():
    pipe = tiny_pipeline(transformer()).to(torch.float16)
    config = ParallelConfig(ulysses=2, timeout=8)
    with Pipeline(pipe=pipe, engine={engine!r}, parallel=config) as pipeline:
        made(pipeline)
        if rank == 1:
            run = pipeline.denoiser.components[0].backend.run
            def lost(feed):
                {how}
                return run(feed)
            pipeline.denoiser.components[0].backend.run = lost
        made(pipeline)
"""


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("os._exit(7)", "process 1 of this run ended with status 7"),
        ("raise MemoryError('none left')", "none left"),
        ("import time; time.sleep(100)", "did not end within 8 seconds|did not answer"),
    ],
)
def test_a_process_that_fails_ends_the_run_with_one_error(engine, tmp_path, how, words):
    started = time.monotonic()
    with pytest.raises(ParallelError, match=words):
        run(LOST.format(engine=str(engine), how=how), 2, tmp_path)
    assert time.monotonic() - started < 90  # loading included
