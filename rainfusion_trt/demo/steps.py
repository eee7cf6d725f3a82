"""The demo's steps that are more than one call."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.demo.components import DEMO_SIZE
from rainfusion_trt.errors import BackendUnavailableError, EngineBuildError
from rainfusion_trt.models import VideoModel

logger = logging.getLogger("rainfusion_trt.demo")

_PROMPT = "a red panda"  # the tiny text encoder takes 16 bytes
_TARGETS = ("sm80", "sm120")  # what TensorRT for RTX builds for where there is no GPU


def export_once(model: VideoModel, pipe: Any, path: Path, dtype: torch.dtype) -> Path:
    """Export the pipeline's transformer, unless the file is there and nothing has changed."""
    from rainfusion_export import export_model

    stamp_file = path.with_suffix(".json")
    stamp = {"transformer": _fingerprint(pipe.transformer), "exporter": _sources()}
    stamp["versions"] = f"torch {torch.__version__}, {DEMO_SIZE}"
    if path.is_file() and stamp_file.is_file() and json.loads(stamp_file.read_text()) == stamp:
        logger.info("%s is up to date", path)
        return path
    transformer = model.create(pipe.transformer.config, dtype=dtype)
    transformer.load_state_dict(pipe.transformer.state_dict())
    report = export_model(
        model, transformer, DEMO_SIZE, output=path, run_compare=dtype == torch.float32
    )
    stamp_file.write_text(json.dumps(stamp), encoding="utf-8")
    error = "" if report.error is None else f", relative error to PyTorch {report.error:.1e}"
    logger.info("%s: %d RainFusionAttention nodes%s", path, report.facts.attentions, error)
    return path


def build_demo_engine(onnx: Path) -> Path:
    """Build for the GPU of this machine, or for named targets where there is none."""
    from rainfusion_trt.engine import EngineProfile, build_engine

    recipe = EngineProfile(model="cogvideox-5b", precision="float16")
    folder = onnx.with_suffix(".engine")
    if torch.cuda.is_available():
        try:
            return build_engine(onnx, profile=recipe, output=folder, target="native")
        except (EngineBuildError, BackendUnavailableError) as error:
            logger.warning(
                "no engine for this GPU (%s); TensorRT for RTX does not cover every data centre "
                "GPU: install `tensorrt` for those. Building for %s instead",
                error,
                ", ".join(_TARGETS),
            )
    return build_engine(onnx, profile=recipe, output=folder, target=_TARGETS)


def run_pair(
    dense: dict[str, Any], sparse: dict[str, Any], *, steps: int, seed: int
) -> tuple[Any, Any]:
    """The same noise through dense and through RainFusion attention; both clips."""
    from rainfusion_trt.pipeline import Pipeline

    clips = []
    for title, arguments, sparsity in (("dense", dense, 0.0), ("RainFusion", sparse, 0.5)):
        logger.info("%s:", title)
        with Pipeline(**arguments, sparsity=sparsity) as pipeline:
            result = pipeline(
                _PROMPT,
                num_frames=DEMO_SIZE.frames,
                height=DEMO_SIZE.height,
                width=DEMO_SIZE.width,
                num_inference_steps=steps,
                seed=seed,
                output_type="np",
                profile=True,
            )
        mean = sum(row.total_ms for row in result.timings) / len(result.timings)
        logger.info("%s ran on %s, %.0f ms a step", title, result.backend, mean)
        clips.append(result.frames[0])
    return clips[0], clips[1]


def _fingerprint(transformer: torch.nn.Module) -> str:
    # diffusers' own entries are a set in some order.
    config = {key: v for key, v in transformer.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in transformer.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sources() -> str:
    """Hash of the code that decides what an exported file holds."""
    import rainfusion_export

    from rainfusion_trt import models

    digest = hashlib.sha256()
    for package in (rainfusion_export, models):
        for file in sorted(Path(package.__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
