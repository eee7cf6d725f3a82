"""The demo's steps that are more than one call."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.demo.stamp import check_stamp, is_cut, is_stamped, write_stamp
from rainfusion_trt.errors import BackendUnavailableError, EngineBuildError
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.models.transformer import as_transformer
from rainfusion_trt.operator.settings import AttentionSettings

logger = logging.getLogger("rainfusion_trt.demo")

_PACKAGE = Path(__file__).parents[1]
_AFTER_EXPORT = (
    "demo",
    "engine",
    "plugin",
    "processes",
    "runtime",
)  # folders without a part in the export
_TARGETS = ("sm80", "sm120")  # what TensorRT for RTX builds for where there is no GPU


@dataclass(frozen=True)
class Shot:
    """The clip to make twice: dense and with RainFusion.

    Attributes
    ----------
    prompt, size, steps, seed
        The same as for `rainfusion_trt.Pipeline`; there is no guidance.
    sparsity : float
        Sparsity of the RainFusion half, in [0, 1), after a first tenth of dense steps.
    settings : AttentionSettings
        Attention settings of the RainFusion half.
    """

    prompt: str
    size: VideoSize
    steps: int
    seed: int
    sparsity: float = 0.5
    settings: AttentionSettings = AttentionSettings()


def check_outputs(folder: Path, *, on_gpu: bool) -> None:
    """Refuse, before the demo starts, what it could not write and what of others it would replace.

    Raises
    ------
    InvalidInputError
        The message names the file.
    """
    from rainfusion_trt.engine.folder import existing_engine

    for path in _models(folder, on_gpu=on_gpu):
        check_stamp(path)
        _check_export(path)
    existing_engine(engine_folder(model_file(folder, torch.float16)))


def model_file(folder: Path, dtype: torch.dtype) -> Path:
    """The exported model in the demo's folder."""
    return folder / f"demo-{'fp16' if dtype == torch.float16 else 'fp32'}.onnx"


def engine_folder(onnx: Path) -> Path:
    """The engine of an exported model."""
    return onnx.with_suffix(".engine")


def _models(folder: Path, *, on_gpu: bool) -> list[Path]:
    dtypes = (torch.float16,) if on_gpu else (torch.float16, torch.float32)
    return [model_file(folder, dtype) for dtype in dtypes]


def _check_export(path: Path) -> None:
    """As the export will look; what is a part of an earlier export only is removed."""
    from rainfusion_trt.export.writer import check_output

    if path.is_file() and not path.is_symlink() and is_cut(path):
        logger.info("%s is cut short: exporting it again", path)
        path.unlink()
    check_output(path)


def export_once(model: VideoModel, pipe: Any, path: Path, dtype: torch.dtype, shot: Shot) -> Path:
    """Export the pipeline's transformer, unless the file is there, whole, and nothing changed."""
    from rainfusion_trt.export import export_model
    from rainfusion_trt.export.writer import is_whole

    facts = {"transformer": _fingerprint(pipe.transformer), "exporter": _sources()}
    facts["versions"] = f"torch {torch.__version__}, {shot.size}, {shot.settings}"
    if is_stamped(path, facts) and is_whole(path):
        logger.info("%s is up to date", path)
        return path
    check_stamp(path)
    _check_export(path)
    transformer = model.create(pipe.transformer.config, dtype=dtype)
    transformer.load_state_dict(pipe.transformer.state_dict())
    report = export_model(
        model,
        transformer,
        shot.size,
        output=path,
        batch=1,  # no guidance
        settings=shot.settings,
        run_compare=dtype == torch.float32,
    )
    write_stamp(path, facts)
    error = "" if report.error is None else f", relative error to PyTorch {report.error:.1e}"
    logger.info("%s: %d RainFusionAttention nodes%s", path, report.facts.attentions, error)
    return path


def build_demo_engine(onnx: Path) -> Path:
    """Build for the GPU of this machine, or for named targets where there is none."""
    from rainfusion_trt.engine import EngineRecipe, build_engine

    recipe = EngineRecipe(model="cogvideox-5b", precision="float16")
    folder = engine_folder(onnx)
    if torch.cuda.is_available():
        try:
            return build_engine(onnx, recipe=recipe, output=folder, target="native")
        except (EngineBuildError, BackendUnavailableError) as error:
            logger.warning(
                "no engine for this GPU (%s); TensorRT for RTX does not cover every data centre "
                "GPU: install `tensorrt` for those. Building for %s instead",
                error,
                ", ".join(_TARGETS),
            )
    return build_engine(onnx, recipe=recipe, output=folder, target=_TARGETS)


def run_pair(dense: dict[str, Any], sparse: dict[str, Any], shot: Shot) -> tuple[Any, Any]:
    """The same noise through dense and through RainFusion attention.

    Parameters
    ----------
    dense, sparse
        Arguments of `rainfusion_trt.Pipeline` that say where each half runs.
    shot
        The clip to make.

    Returns
    -------
    tuple of numpy.ndarray
        Both clips, floating [T, H, W, 3] in [0, 1].
    """
    from rainfusion_trt.runtime.pipeline import Pipeline, PipelineOutput

    clips = []
    halves = (("dense", dense, 0.0), (shot.settings.method, sparse, shot.sparsity))
    for title, arguments, sparsity in halves:
        with Pipeline(**arguments, sparsity=sparsity) as pipeline:
            result = pipeline(
                shot.prompt,
                num_frames=shot.size.frames,
                height=shot.size.height,
                width=shot.size.width,
                num_inference_steps=shot.steps,
                guidance_scale=1.0,
                seed=shot.seed,
                output_type="np",
                profile=True,
            )
        assert isinstance(result, PipelineOutput)  # return_dict is true
        mean = sum(row.total_ms for row in result.timings) / len(result.timings)
        logger.info("%s: ran on %s, %.0f ms a step", title, result.backend, mean)
        clips.append(result.frames[0])
    return clips[0], clips[1]


def on_cpu(pipe: Any, onnx: Path, shot: Shot) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for both halves without a GPU; ONNX Runtime has dense attention only."""
    settings = shot.settings.record()
    return (
        {"pipe": pipe, "onnx": onnx, "backend": "onnxruntime", "device": "cpu"},
        {"pipe": pipe, "backend": "torch", "device": "cpu", **settings},
    )


def _fingerprint(transformer: torch.nn.Module) -> str:
    # diffusers' own entries are a set in some order.
    given = as_transformer(transformer).config
    config = {key: value for key, value in given.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in transformer.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sources(package: Path = _PACKAGE) -> str:
    """Hash of the code that decides what an exported file holds: all but what comes after it."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if place.parts[0] not in _AFTER_EXPORT:
            digest.update(place.as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
