"""`enable` on transformers that diffusers has quantised, or would: their layers stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from helpers import quantised
from helpers.required import LISTS, aside

# The layer that each scheme puts in, and its weight.
LAYERS = {
    "torchao": ("Linear", "Int8Tensor torch.float32"),
    "gguf": ("GGUFLinear", "GGUFParameter torch.uint8"),
    "bitsandbytes_8bit": ("Linear8bitLt", "Int8Params torch.int8"),
    "bitsandbytes_4bit": ("Linear4bit", "Params4bit torch.uint8"),
    "stand-in": ("StandIn", "Tensor torch.int8"),
}
# Their layers are modules that give floats, too, and run on GPUs only: the stand-in is for these.
STOOD_IN_FOR = {"auto-round", "bfl", "modelopt", "nunchaku_lite", "quanto", "sdnq"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    packages = aside("quantisers")
    path = [str(LISTS.parents[1]), str(LISTS.parent), str(packages)]
    child = subprocess.run(
        [sys.executable, quantised.__file__, tmp_path_factory.mktemp("quantised")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        timeout=500,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_every_scheme_of_diffusers_is_known():
    """A new one fails here until it is among these and in docs/diffusers.md."""
    assert set(AUTO_QUANTIZER_MAPPING) == (set(LAYERS) - {"stand-in"}) | STOOD_IN_FOR


@pytest.mark.parametrize("scheme", LAYERS)
def test_quantised_transformer(answers, scheme):
    answer = answers[scheme]
    assert (answer["layer"], answer["weight"]) == LAYERS[scheme]
    assert answer["quantisation"] > 1e-4  # the weights were rounded
    assert answer["at 0"] < 1e-5 < 1e-3 < answer["at 0.7"]
    assert answer["routed"] == 2 and answer["off"] == 0.0
