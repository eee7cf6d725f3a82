"""The node for ComfyUI on stand-ins that keep its contract: wrappers, override, patch sizes.

Their attention and forwards have the signatures of ComfyUI's; its own classes are not installed.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rainfusion_trt import rainfusion_attention
from rainfusion_trt.errors import DenseAttentionError, InvalidInputError, UnsupportedError
from rainfusion_trt.operator.settings import AttentionSettings

HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE


@pytest.fixture(scope="module")
def node():
    """As ComfyUI loads it, by its path."""
    file = Path(__file__).parents[2] / "integrations/comfyui/__init__.py"
    spec = importlib.util.spec_from_file_location("comfyui_pack", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["RainFusionAttention"]()


def dense(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, **_):
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is not None and mask.dim() == 3:
        mask = mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def optimized_attention(*args, **kwargs):
    override = kwargs["transformer_options"].get("optimized_attention_override")
    return override(dense, *args, **kwargs) if override else dense(*args, **kwargs)


class Executor:
    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        first, *others = self.wrappers
        return first(Executor(self.original, self.class_obj, others), *args, **kwargs)


class Patcher:
    """As ``ModelPatcher``: options are copied deeply, wrappers are not."""

    def __init__(self, model):
        self.model, self.wrappers = model, []
        self.model_options = {"transformer_options": {}}

    def get_model_object(self, name):
        return getattr(self, name.replace("diffusion_model", "model"))

    def clone(self):
        other = Patcher(self.model)
        other.wrappers = list(self.wrappers)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def add_wrapper_with_key(self, kind, key, wrapper):
        assert kind == "diffusion_model"
        self.wrappers.append(wrapper)

    @torch.no_grad()
    def __call__(self, x, context, options=(), **kwargs):
        run = Executor(self.model._forward, self.model, self.clone().wrappers)
        options = {**self.clone().model_options["transformer_options"], **dict(options)}
        return run(x, torch.ones(1), context, transformer_options=options, **kwargs)


class Model(nn.Module):
    """Attention of `x` and `context` in one sequence, or of one to the other; `seen` has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(1, 3 * WIDTH)
        self.seen = []

    def tokens(self, x, patch):
        pooled = F.avg_pool3d(x, patch, patch, ceil_mode=True)
        return pooled.flatten(2).transpose(1, 2)

    def attend(self, queries, keys, options, mask=None, heads_apart=False):
        q = self.qkv(queries).chunk(3, -1)[0]
        _, k, v = self.qkv(keys).chunk(3, -1)
        if heads_apart:
            q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        arguments = {"mask": mask, "skip_reshape": heads_apart, "transformer_options": options}
        out = optimized_attention(q, k, v, HEADS, **arguments)
        self.seen.append(([q, k, v], dense(q, k, v, HEADS, mask, skip_reshape=heads_apart), out))
        return out


class WanModel(Model):
    patch_size = (1, 2, 2)
    ref_conv = None

    def _forward(self, x, timestep, context, clip_fea=None, transformer_options={}, **kwargs):  # noqa: B006
        tokens = self.tokens(x, self.patch_size)
        if self.ref_conv is not None:
            tokens = torch.cat((kwargs["reference_latent"].flatten(2).mT[:, ::4], tokens), 1)
        self.attend(tokens, tokens, transformer_options)
        return self.attend(tokens, context, transformer_options)


class VaceWanModel(WanModel):
    """Known by its base."""


class HunyuanVideo(Model):
    patch_size = [1, 2, 2]

    def _forward(self, x, timestep, context, attention_mask=None, transformer_options={}, **kwargs):  # noqa: B006
        self.attend(context, context, transformer_options, heads_apart=True)  # the refiner
        joint = torch.cat((self.tokens(x, tuple(self.patch_size)), context), 1)
        return self.attend(joint, joint, transformer_options, attention_mask, heads_apart=True)


class CogVideoXTransformer3DModel(Model):
    patch_size, patch_size_t = 2, None

    def _forward(self, x, timestep, context, ofs=None, transformer_options={}, **kwargs):  # noqa: B006
        joint = torch.cat((context, self.tokens(x, (1, 2, 2))), 1)
        return self.attend(joint, joint, transformer_options)


class LTXVModel(Model):
    class patchifier:  # noqa: N801
        patch_size = (1, 1, 1)

    def _forward(self, x, timestep, context, transformer_options={}, keyframe_idxs=None, **kwargs):  # noqa: B006
        tokens = self.tokens(x, (1, 1, 1))
        self.attend(tokens, tokens, transformer_options)
        return self.attend(tokens, context, transformer_options)


class UNetModel(Model):
    """One that is not known."""

    def _forward(self, x, timestep, context, transformer_options={}, **kwargs):  # noqa: B006
        return self.attend(x, context, transformer_options)


GRID = (5, 16, 16)  # tokens; ten blocks of 128
LATENTS = torch.randn(1, 1, 5, 31, 32, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(1, 24, 1, generator=torch.Generator().manual_seed(2))


def apply(
    node, model, sparsity=0.6, dense_steps=0, allow_dense=False, method=AttentionSettings.method
):
    return node.apply(Patcher(model), sparsity, method, dense_steps, 1, allow_dense)[0]


def expected(qkv, text, kv_len=None):
    q, k, v = qkv
    if q.dim() == 3:
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in qkv)
    out = rainfusion_attention(q, k, v, GRID, text=text, sparsity=0.6, kv_len=kv_len)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    "kind, latents, place, sparse",
    [
        (WanModel, LATENTS, "none", 0),
        (VaceWanModel, LATENTS, "none", 0),
        (HunyuanVideo, LATENTS, "last", 1),
        (CogVideoXTransformer3DModel, LATENTS, "first", 0),
        (LTXVModel, LATENTS[..., :16, :16], "none", 0),
    ],
)
def test_attention_over_the_video_alone_is_ours(node, kind, latents, place, sparse):
    model = kind()
    apply(node, model)(latents, CONTEXT)
    for number, (qkv, full, out) in enumerate(model.seen):
        if number == sparse:
            assert torch.equal(out, expected(qkv, place))
            assert (out - full).abs().max() > 1e-4
        else:
            assert torch.equal(out, full)


def test_tokens_of_a_reference_stay_dense(node):
    model = WanModel()
    model.ref_conv = "a layer"
    apply(node, model)(LATENTS, CONTEXT, reference_latent=torch.randn(1, 1, 32, 32))
    qkv, full, out = model.seen[0]
    assert qkv[0].shape[1] == 256 + 5 * 256 and torch.equal(out, expected(qkv, "first"))
    torch.testing.assert_close(out[:, :256], full[:, :256])


def test_padding_of_the_text_is_never_seen(node):
    model = HunyuanVideo()
    mask = torch.zeros(1, 1, 5 * 256 + 24)
    mask[..., -9:] = torch.finfo(torch.float32).min
    apply(node, model)(LATENTS, CONTEXT, attention_mask=mask)
    qkv, _, out = model.seen[1]
    kv_len = torch.tensor([5 * 256 + 15], dtype=torch.int32)
    assert torch.equal(out[:, :-9], expected(qkv, "last", kv_len)[:, :-9])
    mask[..., -12] = -1.0
    with pytest.raises(DenseAttentionError, match="hides more than padding"):
        apply(node, model)(LATENTS, CONTEXT, attention_mask=mask)
    apply(node, model, allow_dense=True)(LATENTS, CONTEXT, attention_mask=mask)
    assert torch.equal(model.seen[-1][1], model.seen[-1][2])


def test_first_steps_are_dense(node):
    model = WanModel()
    patched = apply(node, model, dense_steps=2)
    levels = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
    for step in range(4):
        options = {"sample_sigmas": levels, "sigmas": levels[step : step + 1]}
        patched(LATENTS, CONTEXT, options)
    same = [torch.equal(out, full) for _, full, out in model.seen[::2]]
    assert same == [True, True, False, False]
    with pytest.raises(InvalidInputError, match="dense_steps=2 needs a sampler"):
        patched(LATENTS, CONTEXT)
    options = {"sample_sigmas": levels[2:], "sigmas": levels[2:3]}
    with pytest.raises(DenseAttentionError, match="leaves none of the 2 steps sparse"):
        patched(LATENTS, CONTEXT, options)


def test_another_override_keeps_what_is_not_ours(node):
    model = WanModel()
    patcher = Patcher(model)
    seen = []

    def other(original, *args, **kwargs):
        seen.append(args[1].shape[1])
        return original(*args, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = other
    node.apply(patcher, 0.6, "rainfusion2", 0, 1, False)[0](LATENTS, CONTEXT)
    assert seen == [24]
    patcher(LATENTS, CONTEXT)  # the model that came in is as it was
    assert seen == [24, 1280, 24]


@pytest.mark.parametrize(
    "kind, latents, context, arguments, reason",
    [
        (WanModel, LATENTS[:, :, :2], CONTEXT, {}, "clip has 2 latent frames"),
        (WanModel, LATENTS[:, :, :3, :16, :16], CONTEXT, {}, "one window of method 'piecewise'"),
        (WanModel, LATENTS, CONTEXT.repeat(1, 54, 1)[:, :1280], {}, "text has as many tokens"),
        (LTXVModel, LATENTS[..., :8, :8], CONTEXT, {"keyframe_idxs": 1}, "guide frames"),
        (HunyuanVideo, LATENTS, CONTEXT, {"ref_latent": 1}, "a reference latent"),
        (UNetModel, LATENTS.flatten(2).mT, CONTEXT, {}, "UNetModel is none of the models"),
    ],
)
def test_what_cannot_be_sparse(node, caplog, kind, latents, context, arguments, reason):
    with pytest.raises(DenseAttentionError, match=f"{reason}.*tick allow_dense"):
        apply(node, kind())(latents, context, **arguments)
    model = kind()
    apply(node, model, allow_dense=True)(latents, context, **arguments)
    assert all(torch.equal(out, full) for _, full, out in model.seen)
    assert reason in caplog.text


def test_a_forward_whose_attention_is_not_found(node):
    class WanModel_S2V(WanModel):  # noqa: N801
        def _forward(self, x, timestep, context, transformer_options={}, **kwargs):  # noqa: B006
            return super()._forward(x, timestep, context)

    with pytest.raises(DenseAttentionError, match="no attention of WanModel_S2V is over the 1280"):
        apply(node, WanModel_S2V())(LATENTS, CONTEXT)


def test_in_8_bits(node):
    """A choice that workflows of before do not have; the operator gets it."""
    optional = ["precision", "last_sink_frames", "exact_frames"]
    assert list(node.INPUT_TYPES()["optional"]) == optional
    narrow = node.apply(Patcher(WanModel()), 0.5, "piecewise", 0, 1, False, "8bit")[0]
    with pytest.raises(UnsupportedError, match="no kernel for head size 16, only for 64 and 128"):
        narrow(LATENTS, CONTEXT)
    with pytest.raises(UnsupportedError, match="no kernel for the textural heads"):
        node.apply(Patcher(WanModel()), 0.5, "rainfusion", 0, 1, False, "8bit")


def test_exact_frames(node):
    """The operator gets them; of 5 latent frames the clip has no sixth."""
    given = (0.5, "rainfusion2", 0, 1, False, "16bit", 0)
    outputs = []
    for frames in ("", "2", "3, 1:3"):
        model = WanModel()
        node.apply(Patcher(model), *given, frames)[0](LATENTS, CONTEXT)
        outputs.append([out for _, _, out in model.seen])
    for others in outputs[1:]:
        assert not all(torch.equal(*pair) for pair in zip(outputs[0], others, strict=True))
    with pytest.raises(InvalidInputError, match="names latent frame 5, and the clip has 5"):
        node.apply(Patcher(WanModel()), *given, "5")[0](LATENTS, CONTEXT)
    with pytest.raises(InvalidInputError, match="exact_frames '2-3' is neither a latent frame"):
        node.apply(Patcher(WanModel()), *given, "2-3")


def test_sinks_at_the_end(node):
    """The operator gets them; of 5 latent frames four leave nothing to be sparse in."""
    patched = node.apply(Patcher(WanModel()), 0.5, "piecewise", 0, 1, False, "16bit", 3)[0]
    words = "sink_frames=1 and last_sink_frames=3 of them are always attended to"
    with pytest.raises(DenseAttentionError, match=words):
        patched(LATENTS, CONTEXT)
    outputs = []
    for last in (0, 1):
        model = WanModel()
        node.apply(Patcher(model), 0.5, "piecewise", 0, 1, False, "16bit", last)[0](
            LATENTS, CONTEXT
        )
        outputs.append([out for _, _, out in model.seen])
    assert not all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


def test_twice_is_an_error(node):
    patched = apply(node, WanModel())
    with pytest.raises(DenseAttentionError, match="already"):
        node.apply(patched, 0.5, "rainfusion", 0, 1, False)


def test_widgets_are_the_arguments(node):
    widgets = node.INPUT_TYPES()["required"]
    values = [kind[1]["default"] for kind in widgets.values() if len(kind) > 1]
    patched = node.apply(Patcher(WanModel()), *values)[0]
    levels = torch.linspace(1.0, 0.0, 7)
    patched(LATENTS, CONTEXT, {"sample_sigmas": levels, "sigmas": levels[:1]})
