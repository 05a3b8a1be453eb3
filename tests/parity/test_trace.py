"""The quick way from a module to a graph gives the graph that torch's own way gives."""

import gc
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentrt.export import trace as tracing
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, component_vocabulary, wrap
from latentrt.export.simplify import simplify
from latentrt.export.trace import OPSET, _export, _quiet, _uncollected, trace
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec, Dim, port

DIMS = {name: Dim(name, 1, 2, 64) for name in ("rows", "latent_height", "latent_width")}
PIXELS = ("rows", 8, "latent_height", "latent_width")
SPEC = ComponentSpec(
    "network",
    (port("image", "float32", *PIXELS), port("ids", "int64", "rows", 5)),
    (port("drawn", "float32", *PIXELS),),
    DIMS,
)
VOCABULARY = 10


class Network(nn.Module):
    """What the networks are made of, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 16)
        self.embedding = nn.Embedding(VOCABULARY, 8)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """(rows, 8, h, w), (rows, 5) -> (rows, 8, h, w)."""
        rows, channels, height, width = image.shape
        small = functional.silu(self.norm(self.conv(functional.pad(image, (0, 1, 0, 1)))))
        tokens = small.permute(0, 2, 3, 1).reshape(rows, -1, channels)
        first, second = self.linear(tokens).chunk(2, dim=-1)
        texts = self.embedding(ids).to(torch.float32)
        mixed = functional.scaled_dot_product_attention(first[:, None], texts[:, None], texts[:, None])
        mixed = mixed.reshape(rows, -1, mixed.shape[2], channels)[:, 0] * (second.half() + 1).float()
        back = mixed.reshape(rows, *small.shape[2:], channels).permute(0, 3, 1, 2).contiguous() + small
        large = functional.interpolate(back, size=(height, width), mode="nearest")
        return (image + functional.dropout(large, training=False)).clamp(-3, 2).type(torch.float32)


class InPlace(nn.Module):
    """A tensor that is written to."""

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Double the image, and add the first id."""
        doubled = image * 2
        doubled.add_(ids[:, :1, None, None])
        return doubled


class Composite(nn.Module):
    """An operator that ONNX has not, and whose parts it has."""

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Weigh the image by an angle."""
        return image * functional.cosine_similarity(image, image + ids[:, :1, None, None], dim=1)[:, None]


@pytest.mark.parametrize(
    "component",
    [name if name == "text_encoder" else pytest.param(name, marks=pytest.mark.slow) for name in MODULES],
)
def test_the_graph_is_torch_s_own(sdxl_checkpoint: Path, component: str) -> None:
    checkpoint = Checkpoint.open(sdxl_checkpoint)
    spec = component_specs(checkpoint.model, Limits.around(128), dict.fromkeys(MODULES, "fp16"))[component]
    network = checkpoint.network(MODULES[component][0], torch.float16)
    module, vocabulary = wrap(component, network, checkpoint.model), component_vocabulary(checkpoint, component)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _export(module, spec, vocabulary),
            dynamo=True,
            input_names=[port.name for port in spec.inputs],
            output_names=[port.name for port in spec.outputs],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    ours, wanted = trace(module, spec, vocabulary), nodes(program.model)
    assert nodes(ours) == wanted
    assert len(wanted) > 50
    simplify(ours)
    assert nodes(ours) == wanted


def test_what_is_left_of_a_network() -> None:
    kinds = Counter(node.op_type for node in trace(Network().eval(), SPEC, VOCABULARY).graph)
    assert kinds["Conv"] == kinds["Attention"] == kinds["Clip"] == kinds["Split"] == 1
    assert not kinds.keys() & {"Pad", "Identity", "Constant", "Max", "Min", "Dropout", "Slice"}


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


@pytest.mark.parametrize(("kind", "tried"), [(Network, False), (InPlace, False), (Composite, True)])
def test_what_must_be_decomposed_is(kind: type[nn.Module], tried: bool, caplog: pytest.LogCaptureFixture) -> None:
    module = kind().eval()
    with caplog.at_level(logging.DEBUG, tracing.__name__):
        model = trace(module, SPEC, VOCABULARY)
    assert ("network: decomposed after all" in caplog.text) == tried
    image, ids = torch.randn(3, 8, 7, 10), torch.randint(0, VOCABULARY, (3, 5))
    with torch.no_grad():
        wanted = module(image, ids).numpy()
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy(), "ids": ids.numpy()})
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # the first network has a product in fp16


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
