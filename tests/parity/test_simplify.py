"""The clean-up of traced graphs gives what onnxscript's own optimiser gives."""

import gc
from collections import Counter

import onnx_ir as ir
import onnxscript.optimizer
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentrt.export.simplify import simplify
from latentrt.export.trace import OPSET, _quiet, _uncollected


class Network(nn.Module):
    """What the networks are made of, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 16)
        self.embedding = nn.Embedding(10, 8)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """(rows, 8, h, w), (rows, 5) -> (rows, 8, h, w)."""
        rows, channels, height, width = image.shape
        small = functional.silu(self.norm(self.conv(functional.pad(image, (0, 1, 0, 1)))))
        tokens = small.permute(0, 2, 3, 1).reshape(rows, -1, channels)
        first, second = self.linear(tokens).chunk(2, dim=-1)
        texts = self.embedding(ids)[:, :, None].transpose(1, 2)[:, 0]
        mixed = functional.scaled_dot_product_attention(first[:, None], texts[:, None], texts[:, None])[:, 0] * second
        back = mixed.reshape(rows, *small.shape[2:], channels).permute(0, 3, 1, 2).contiguous() + small
        large = functional.interpolate(back, size=(height, width), mode="nearest")
        return (image + large + torch.zeros(1)).clamp(-3, 2).to(torch.float32)


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"image": {0: dynamic, 2: dynamic, 3: dynamic}, "ids": {0: dynamic}}
    example = {"image": torch.randn(2, 8, 9, 11), "ids": torch.arange(10).reshape(2, 5)}
    with torch.no_grad(), _quiet():
        exported = torch.export.export(Network().eval(), (), example, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=False)
    return program.model


def test_the_graph_is_that_of_the_whole_optimiser(traced: ir.Model) -> None:
    whole, ours = traced.clone(), traced.clone()
    onnxscript.optimizer.optimize_ir(whole)
    simplify(ours)
    assert nodes(ours) == nodes(whole)
    assert len(nodes(ours)) < 0.7 * len(nodes(traced))
    kinds = Counter(node.op_type for node in ours.graph)
    assert kinds["Conv"] == kinds["Attention"] == kinds["Clip"] == 1
    assert not kinds.keys() & {"Pad", "Identity", "Constant", "Max", "Min"}
    simplify(ours)
    assert nodes(ours) == nodes(whole)


def nodes(model: ir.Model) -> list[str]:
    """Operators, attributes and values of all nodes; a constant is its values."""
    names: dict[ir.Value, str] = {}

    def name(value: ir.Value | None) -> str:
        if value is not None and value.const_value is not None:
            return str(value.const_value.numpy().tolist())
        return "" if value is None else names.setdefault(value, f"value {len(names)}")

    return [
        f"{node.op_type} {[name(value) for value in node.inputs]} -> {[name(value) for value in node.outputs]} "
        f"{sorted((key, str(attribute.value)) for key, attribute in node.attributes.items())}"
        for node in model.graph
    ]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with _uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
