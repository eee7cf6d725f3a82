"""Trained weights as small files that can travel one by one, with a manifest of their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

MANIFEST = "manifest.json"
MOST = 15 * 2**20  # bytes of a piece
_HEADER = 2**16  # more than the names of a piece's tensors take


def save_pieces(
    folder: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any], most: int = MOST
) -> Path:
    """Write weights in bfloat16, in safetensors files of at most ``most`` bytes.

    Parameters
    ----------
    facts
        What is known of the weights, for the manifest.

    Returns
    -------
    Path
        The manifest: the facts, and size and SHA-256 of every piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: value.detach().to("cpu", torch.bfloat16) for name, value in weights.items()}
    save_torch_state_dict(halves, folder, max_shard_size=most - _HEADER)
    paths = sorted(folder.glob("model*.safetensors"))
    large = [path.name for path in paths if path.stat().st_size > most]
    if large:
        raise ValueError(f"{large[0]} has more than {most} bytes: one tensor alone is larger")
    pieces = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"facts": dict(facts), "pieces": pieces}, indent=1) + "\n")
    return manifest


def load_pieces(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in bfloat16 and their facts, after every hash was compared."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise FileNotFoundError(f"no {MANIFEST} in {folder}: write it with --save-weights")
    record = json.loads(manifest.read_text())
    weights: dict[str, Tensor] = {}
    for name, piece in record["pieces"].items():
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{name} is missing in {folder}: copy all pieces")
        if _sha256(path) != piece["sha256"]:
            raise ValueError(f"{path} is not the piece that the manifest names: copy it again")
        weights |= load_file(path, device=str(device))
    return weights, record["facts"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
