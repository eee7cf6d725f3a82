"""A process with quantised transformers: ``python quantised.py FOLDER``.

FOLDER is for files. The packages that quantise are in a folder that scripts/test.sh makes and the
caller has put on the path. Prints as JSON what `enable` did to the output of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

import rainfusion_trt
from helpers.routed_models import call_of, run, tiny

NAME = "wan2.1-1.3b"


def _torchao(transformer: nn.Module, folder: Path) -> nn.Module:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    transformer.save_pretrained(folder)
    config = TorchAoConfig(Int8WeightOnlyConfig())
    return WanTransformer3DModel.from_pretrained(
        folder, quantization_config=config, torch_dtype=torch.float32
    )


def _gguf(transformer: nn.Module, folder: Path) -> nn.Module:
    import gguf
    from diffusers import GGUFQuantizationConfig

    transformer.save_config(folder)
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in transformer.state_dict().items():
        values, kind = tensor.numpy(), gguf.GGMLQuantizationType.Q8_0
        if ".attn" in name and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return WanTransformer3DModel.from_single_file(
        str(path),
        config=str(folder),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )


def _bitsandbytes(convert: Callable[[nn.Linear], nn.Module]) -> Callable[..., nn.Module]:
    """The layers that diffusers puts in; it does so only where there is a GPU."""

    def quantise(transformer: nn.Module, folder: Path) -> nn.Module:
        for block in transformer.blocks:
            for name, layer in list(block.named_modules()):
                if isinstance(layer, nn.Linear):
                    parent = block.get_submodule(name.rpartition(".")[0])
                    setattr(parent, name.rpartition(".")[2], convert(layer))
        return transformer

    return quantise


def _eight_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    bias = layer.bias is not None
    new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, bias, has_fp16_weights=False)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def _four_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    bias = layer.bias is not None
    new = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias, torch.float32, quant_type="nf4"
    )
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


class StandIn(nn.Module):
    """What the layers of all schemes are: no nn.Linear, integers, and floats in the forward."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (layer.weight / scale).round().to(torch.int8))
        self.register_buffer("bias", layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


SCHEMES: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "torchao": _torchao,
    "gguf": _gguf,
    "bitsandbytes_8bit": _bitsandbytes(_eight_bits),
    "bitsandbytes_4bit": _bitsandbytes(_four_bits),
    "stand-in": _bitsandbytes(StandIn),
}


def inspect(scheme: str, folder: Path) -> dict[str, Any]:
    """Outputs of a transformer before, with and after RainFusion, relative to the largest value."""
    model, plain = tiny(NAME)
    call = call_of(model, plain)
    exact = run(plain, call)
    folder.mkdir()
    transformer = SCHEMES[scheme](plain, folder)
    layer: Any = transformer.blocks[0].attn1.to_q
    dense = run(transformer, call)

    def difference(other: torch.Tensor) -> float:
        return ((other - dense).abs().max() / dense.abs().max()).item()

    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=NAME, method="rainfusion")
    answer = {
        "layer": type(layer).__name__,
        "weight": f"{type(layer.weight).__name__} {layer.weight.dtype}",
        "quantisation": difference(exact),
        "at 0": difference(run(transformer, call)),
    }
    routing.sparsity = 0.7
    answer["at 0.7"] = difference(run(transformer, call))
    answer["routed"] = routing.routed
    rainfusion_trt.disable(transformer)
    answer["off"] = difference(run(transformer, call))
    return answer


def main(folder: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps({scheme: inspect(scheme, Path(folder) / scheme) for scheme in SCHEMES}))


if __name__ == "__main__":
    main(*sys.argv[1:])
