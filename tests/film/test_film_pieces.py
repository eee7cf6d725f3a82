"""Weights travel in pieces and come back as they were."""

import json

import pytest
import torch

from benchmarks.film.pieces import MANIFEST, load_pieces, save_pieces

MOST = 200_000


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(150, 200, generator=generator) for i in range(7)}


def test_pieces_come_back(tmp_path, weights):
    manifest = save_pieces(tmp_path, weights, {"seed": 3}, most=MOST)
    found, facts = load_pieces(tmp_path)
    assert facts == {"seed": 3}
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[k], weights[k].bfloat16()) for k in weights)
    pieces = json.loads(manifest.read_text())["pieces"]
    assert len(pieces) == 4  # two of 60 kB each, in less than 200 kB and its margin
    assert all((tmp_path / name).stat().st_size == piece["bytes"] for name, piece in pieces.items())
    assert all(piece["bytes"] <= MOST for piece in pieces.values())


def test_fewer_pieces_replace_more(tmp_path, weights):
    save_pieces(tmp_path, weights, {}, most=MOST)
    few = {"layer.0.weight": weights["layer.0.weight"]}
    save_pieces(tmp_path, few, {}, most=MOST)
    assert load_pieces(tmp_path)[0].keys() == few.keys()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_tensor_larger_than_a_piece_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="has more than 50000 bytes"):
        save_pieces(tmp_path, weights, {}, most=50_000)


def test_a_piece_that_changed_or_is_missing_is_refused(tmp_path, weights):
    save_pieces(tmp_path, weights, {}, most=MOST)
    path = sorted(tmp_path.glob("model*.safetensors"))[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{path.name} is not the piece"):
        load_pieces(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name} is missing"):
        load_pieces(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        load_pieces(tmp_path)
