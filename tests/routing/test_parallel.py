"""One clip on several processes, each with a part of the tokens: equal to one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.parallel.spread import _Cut, _patch_of, check_spread, spread, unspread
from rainfusion_trt.routing.parallel import Ulysses
from tests.helpers.live_memory import peak_bytes
from tests.helpers.process_group import in_processes, one_of
from tests.helpers.routed_models import CLASSES, call_of, run, tiny

SHARED = (*CLASSES, "wan2.1-vace-1.3b", "skyreels-v2-14b")
HEADS = 4
SIZE = VideoSize(25, 112, 112)  # 7 x 7 x 7 tokens, which neither 2 nor 3 divides
TEXT = 37

# Every row of a product of matrices is the same sum whichever rows are beside it, so that answers
# are equal to the bit where the library adds it in one order. A BLAS may choose another order by
# the number of rows; then a product of n terms is off by n roundings at most, and n is below 1024
# here. Outputs are of unit scale, and a block adds four such products.
_ROUNDINGS = 4 * 1024 * torch.finfo(torch.float32).eps


def _model(name: str, **changes: Any) -> tuple[VideoModel, Any]:
    changes = {"num_attention_heads": HEADS, "num_layers": 1, **changes}
    if "vace" in name:  # two blocks of the control branch
        changes |= {"num_layers": 2, "vace_layers": [0, 1]}
    if name == "allegro":
        changes["cross_attention_dim"] = HEADS * 96
    return tiny(name, **changes)


def _call(
    model: VideoModel, transformer: Any, batch: int, size: VideoSize | None = None
) -> dict[str, Any]:
    """A call with short texts, of different lengths where the batch has several."""
    if size is None:
        size = VideoSize(25, 128, 128) if model.name.startswith("cogvideox") else SIZE
    call = call_of(model, transformer, size, batch=batch)
    for name in ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds"):
        if name in call:
            call[name] = call[name][:, :TEXT]
    for name in ("encoder_attention_mask", "encoder_attention_mask_2"):
        if name in call:
            lengths = torch.tensor([[TEXT - 9 * i] for i in range(batch)])
            call[name] = (torch.arange(TEXT) < lengths).to(call[name].dtype)
    return call


def _meshes() -> list[Any]:
    """All ways to cut this group into groups of one size, from two processes on."""
    from torch.distributed.device_mesh import init_device_mesh

    names, world = ("guidance", "ring", "ulysses"), dist.get_world_size()
    degrees = [degree for degree in range(2, world + 1) if world % degree == 0]
    return [init_device_mesh("cpu", (world // p, 1, p), mesh_dim_names=names) for p in degrees]


Answers = dict[tuple[Any, ...], tuple[float, float, float]]


def _compared(several: Tensor, one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """How far answers of several and of one are apart, those of another sparsity, and the scale."""
    assert torch.isfinite(several).all() and several.shape == one.shape
    return (
        float((several - one).abs().max()),
        float((one - other).abs().max()),
        float(one.abs().max()),
    )


def _sequences(rank: int) -> Answers:
    """Every class, cut into every number of parts that this group can be divided into."""
    answers = {}
    meshes = _meshes()
    for name in SHARED:
        model, transformer = _model(name)
        routing = rainfusion_trt.enable(
            transformer, sparsity=0.6, model=model.name, method="rainfusion"
        )
        for batch in (1, 2) if dist.get_world_size() == 4 else (2,):
            call = _call(model, transformer, batch)
            routing.sparsity = 0.0
            dense = run(transformer, call)
            routing.sparsity = 0.6
            sparse = run(transformer, call)
            for mesh in meshes:
                spread(routing, transformer, mesh)
                several = run(transformer, call)
                assert routing.routed == len(routing.sites)
                answers[name, batch, mesh["ulysses"].size(), 0.6] = _compared(
                    several, sparse, dense
                )
                if batch == 2:
                    routing.sparsity = 0.0
                    several = run(transformer, call)
                    answers[name, batch, mesh["ulysses"].size(), 0.0] = _compared(
                        several, dense, sparse
                    )
                    routing.sparsity = 0.6
                unspread(transformer)
            assert torch.equal(run(transformer, call), sparse)
    answers.update(_more(meshes[-1]))
    return answers


def _more(mesh: Any) -> Answers:
    """torch.compile, diffusers' own hooks, and attention that stays dense in one block."""
    answers = _compiled(mesh) if dist.get_world_size() == 3 else _by_diffusers(mesh)
    model, transformer = _model("hunyuanvideo", num_layers=2)
    call = _call(model, transformer, 2)
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.6, model=model.name, allow_dense=True, method="rainfusion"
    )
    sparse = run(transformer, call)
    routing.sites[1].attention.processor._attention_backend = "_native_math"
    mixed = run(transformer, call)
    spread(routing, transformer, mesh)
    answers["hunyuanvideo", "mixed"] = _compared(run(transformer, call), mixed, sparse)
    assert len(routing.report().dense) == 1
    return answers


def _compiled(mesh: Any) -> Answers:
    """Blocks through torch.compile, as `compile_blocks` does it."""
    answers = {}
    # Not a full graph: diffusers' hook reads the signature of a block in its first forward, where
    # arguments have no names.
    for name, full in (("cogvideox-5b", True), ("wan2.1-1.3b", False)):
        model, transformer = _model(name)
        call = _call(model, transformer, 1)
        routing = rainfusion_trt.enable(
            transformer, sparsity=0.6, model=model.name, method="rainfusion"
        )
        alone = run(transformer, call)
        spread(routing, transformer, mesh)
        routing.sites[0].block.compile(backend="eager", fullgraph=full)
        answers[name, "compiled"] = _compared(run(transformer, call), alone, alone + 1)
    return answers


def _by_diffusers(mesh: Any) -> Answers:
    """With diffusers' hooks alone, which put equal parts together by themselves."""
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig

    answers = {}
    for name in ("cogvideox-5b", "wan2.1-1.3b"):
        model, transformer = _model(name)
        call = call_of(model, transformer, VideoSize(25, 128, 128))
        call["encoder_hidden_states"] = call["encoder_hidden_states"][:, : 4 * HEADS]
        routing = rainfusion_trt.enable(
            transformer, sparsity=0.6, model=model.name, method="rainfusion"
        )
        alone = run(transformer, call)
        routing.sparsity = 0.0
        dense = run(transformer, call)
        routing.sparsity = 0.6
        context = ContextParallelConfig(ulysses_degree=mesh["ulysses"].size(), mesh=mesh)
        config = ParallelConfig(context_parallel_config=context)
        config.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
        for site in routing.sites:
            site.processor._parallel_config = config
        apply_context_parallel(transformer, context, rainfusion_trt.cp_plan(transformer))
        answers[name, "by diffusers"] = _compared(run(transformer, call), alone, dense)
    return answers


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    "name", ["wan2.1-1.3b", "hunyuanvideo", "wan2.1-vace-1.3b", "skyreels-v2-14b"]
)
def test_memory_of_a_process_is_its_part(name, processes):
    """Of the first process, whose part is the largest; nothing is sent.

    With real processes an exchange's own thread lets go of what was sent a moment after it arrived.
    """
    model, transformer = _model(name, num_layers=2)
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.0, model=model.name, method="rainfusion"
    )
    call = call_of(model, transformer, VideoSize(49, 256, 256), batch=1)
    whole = peak_bytes(partial(run, transformer, call))
    with one_of(processes):
        spread(routing, transformer, _meshes()[-1])
        part = peak_bytes(partial(run, transformer, call))
    assert part <= 1.15 / processes * whole


@pytest.mark.parametrize("world", [3, 4])
def test_several_processes_give_what_one_gives(world):
    for answers in in_processes(_sequences, world):
        cases = 3 * 2 if world == 4 else 2  # 4 is cut in two ways, and has batches of one as well
        assert len(answers) == len(SHARED) * cases + 3
        for case, (error, effect, scale) in answers.items():
            assert effect > 1e-3, case  # of the sparsity
            assert error <= _ROUNDINGS * max(1.0, scale), (case, error)


def _refusal(name: str, changes: dict[str, Any] | None = None, **degrees: Any) -> str:
    """What a forward says under a context parallelism; it is said before any process waits."""
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    model, transformer = _model(name, **(changes or {}))
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.5, model=model.name, method="rainfusion"
    )
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(**degrees))
    for site in routing.sites:
        site.processor._parallel_config = config
    with pytest.raises((InvalidInputError, UnsupportedError)) as error:
        run(transformer, _call(model, transformer, 1))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_cut_is_refused():
    assert "ring attention" in _refusal("wan2.1-1.3b", ring_degree=2)
    assert "from 2 to 4 devices" in _refusal("wan2.1-1.3b", ulysses_degree=5)
    uneven = _refusal("cogvideox-5b", ulysses_degree=3)
    assert "ulysses_degree=3 does not divide the 448 video tokens" in uneven
    assert "ulysses_anything=True" in uneven
    text = _refusal("hunyuanvideo", ulysses_degree=2)
    assert "does not divide the" in text


def _own_processors(rank: int) -> dict[str, Any]:
    """A self-attention with a processor of its own; modules replaced after the clip was shared."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    from torch.distributed.device_mesh import init_device_mesh

    class Knows(WanAttnProcessor):
        pass

    class Ignores:
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            raise AssertionError("is refused")

    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    found: dict[str, Any] = {}
    model, transformer = _model("wan2.1-1.3b", num_layers=2)
    call = _call(model, transformer, 1)
    transformer.blocks[0].attn1.processor = Knows()
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.6, model=model.name, allow_dense=True, method="rainfusion"
    )
    alone = run(transformer, call)
    spread(routing, transformer, mesh)
    found["knows"] = _compared(run(transformer, call), alone, alone + 1)
    check_spread(transformer)
    found["told of timesteps"] = _said(transformer, {**call, "enable_diffusion_forcing": True})
    transformer.blocks[0].attn1.processor = Ignores()
    found["ignores"] = _said(transformer, call)
    patches = transformer.patch_embedding
    transformer.patch_embedding = torch.nn.Sequential(patches)
    with pytest.raises(UnsupportedError) as error:
        check_spread(transformer)
    found["replaced"] = str(error.value)
    transformer.patch_embedding = patches
    unspread(transformer)

    model, transformer = _model("skyreels-v2-df-1.3b")
    routing = rainfusion_trt.enable(transformer, model=model.name, method="rainfusion")
    with pytest.raises(UnsupportedError):
        spread(routing, transformer, mesh)
    assert not hasattr(transformer, "_rainfusion_cuts")
    assert all(site.processor._parallel_config is None for site in routing.sites)
    return found


def _said(transformer: Any, call: dict[str, Any]) -> str:
    with pytest.raises(UnsupportedError) as error:
        run(transformer, call)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_processors_of_others_know_of_the_processes_or_are_refused():
    for found in in_processes(_own_processors, 2):
        error, _, scale = found.pop("knows")
        assert error <= _ROUNDINGS * max(1.0, scale)
        assert "enable_diffusion_forcing=True" in found["told of timesteps"]
        assert "blocks.0.attn1" in found["ignores"] and "Ignores" in found["ignores"]
        assert "patch_embedding" in found["replaced"] and "LoRA" in found["replaced"]


def test_a_timestep_for_every_frame_is_refused():
    model, transformer = _model("skyreels-v2-df-1.3b")
    rainfusion_trt.enable(transformer, model=model.name, method="rainfusion")
    with pytest.raises(UnsupportedError, match=r"skyreels-v2-df-1\.3b .* run it on one device"):
        rainfusion_trt.cp_plan(transformer)


@pytest.mark.parametrize("name", ["cosmos-predict2.5-2b", "ltx-2.3", "minimax-h3"])
def test_other_classes_are_refused(name):
    """Though some have a plan in diffusers: it cuts them otherwise than our attention knows."""
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    model, transformer = tiny(name)
    with pytest.raises(UnsupportedError, match="cannot share its tokens"):
        rainfusion_trt.cp_plan(transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    for site in routing.sites:
        site.processor._parallel_config = config
    with pytest.raises(UnsupportedError, match="cannot share its tokens"):
        run(transformer, call_of(model, transformer, model.tiny_size))


def test_a_cache_that_decides_on_each_device_is_refused():
    from diffusers import ContextParallelConfig, FirstBlockCacheConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    model, transformer = tiny("wan2.1-1.3b")
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    for site in routing.sites:
        site.processor._parallel_config = config
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.attn1 .* first block cache"):
        run(transformer, call_of(model, transformer))


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_plan(name):
    _, transformer = tiny(name)
    plan = rainfusion_trt.cp_plan(transformer)
    for path in plan:
        transformer.get_submodule(path)
    assert "proj_out" in plan


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_patches_are_made_of_the_frames_of_a_part(patch, degree, lora):
    """7 x 3 x 5 tokens, none of whose frames any number of devices divides."""
    model = torch.nn.Module()
    model.patches = torch.nn.Conv3d(4, 6, patch, patch)
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=2, target_modules=["patches"], init_lora_weights=False)
        inject_adapter_in_model(config, model)
    convolution = model.patches
    assert hasattr(convolution, "base_layer") is lora
    latents = torch.randn(2, 4, *(n * p for n, p in zip((7, 3, 5), patch, strict=True)))
    whole = convolution(latents).flatten(2)
    for rank, wanted in enumerate(whole.tensor_split(degree, dim=2)):
        cut = _Cut(Ulysses(None, degree, rank), _patch_of(model, "patches"))
        (frames,), _ = cut.pre_forward(convolution, latents)
        tokens = wanted.shape[2]
        assert frames.shape[2] <= patch[0] * (tokens // 15 + 2)
        part = cut.post_forward(convolution, convolution(frames))
        assert part.shape == (2, 6, tokens, 1, 1)
        torch.testing.assert_close(part.flatten(2), wanted)
        assert part.flatten(2).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("frames", [1, 3, 4, 7])
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_zeros_follow_control_of_fewer_frames(degree, frames):
    """As diffusers appends them for Wan VACE: behind the clip's last token of control."""
    convolution = torch.nn.Conv3d(4, 6, (1, 2, 2), (1, 2, 2))
    latents, control = (torch.randn(2, 4, n, 6, 10) for n in (7, frames))
    wanted = convolution(control).flatten(2)
    wanted = torch.nn.functional.pad(wanted, (0, 7 * 15 - wanted.shape[2]))
    for rank, part in enumerate(wanted.tensor_split(degree, dim=2)):
        ulysses = Ulysses(None, degree, rank)
        clip = _Cut(ulysses, (1, 2, 2))
        cut = _Cut(ulysses, (1, 2, 2), clip)
        clip.pre_forward(convolution, latents)
        (some,), _ = cut.pre_forward(convolution, control)
        found = cut.post_forward(convolution, convolution(some))
        torch.testing.assert_close(found.flatten(2), part)
    with pytest.raises(InvalidInputError, match="control of 120 tokens beside a clip of 105"):
        cut.pre_forward(convolution, torch.randn(1, 4, 8, 6, 10))


def test_patches_of_something_else_are_refused():
    model = torch.nn.Module()
    model.patches = torch.nn.Linear(4, 6)
    with pytest.raises(UnsupportedError, match="patches of Module is Linear and no convolution"):
        _patch_of(model, "patches")
