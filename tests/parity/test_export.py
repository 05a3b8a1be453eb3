"""Exported bundles: ports, dtypes, weights, figures; and exports that must fail."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks import parity
from latentrt.export.checks.bundle_verification import sampler_inputs
from latentrt.export.component import ComponentExporter
from latentrt.export.exporter import export_bundle
from latentrt.export.modules import MODULES, VaeDecoder, wrap
from latentrt.export.sampler_graph import sampler_graph, sampler_reference
from latentrt.export.trace import save, trace
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec, Precision, port
from latentrt.runtime.errors import CheckpointError, ParityError

ONNX_DTYPES = {1: "float32", 2: "uint8", 7: "int64", 10: "float16"}
COMPONENTS = ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder", "sampler"]


def load(bundle: Path, component: str) -> onnx.ModelProto:
    return onnx.load(Bundle.open(bundle).onnx(component))


def describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    axes = [axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim]
    return f"{ONNX_DTYPES[tensor.elem_type]}[{', '.join(axes)}]"


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_have_the_ports_of_the_manifest(
    request: pytest.FixtureRequest, component: str, precision: Precision
) -> None:
    bundle = request.getfixturevalue("sdxl_bundle" if precision == "fp32" else "sdxl_bundle_fp16")
    graph = load(bundle, component).graph
    record = Bundle.open(bundle).manifest.components[component]
    assert {value.name: describe(value) for value in graph.input} == record.inputs
    assert {value.name: describe(value) for value in graph.output} == record.outputs


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "sampler"])
def test_fp16_weights_are_fp16(sdxl_bundle_fp16: Path, component: str) -> None:
    graph = load(sdxl_bundle_fp16, component).graph
    weights = [weight for weight in graph.initializer if len(weight.dims) > 1 and min(weight.dims[:2]) > 1]
    assert len(weights) > 10
    assert {ONNX_DTYPES[weight.data_type] for weight in weights} == {"float16"}


def test_every_component_is_fp16_even_a_vae_that_asks_for_float32(
    sdxl_checkpoint: Path, sdxl_bundle_fp16: Path
) -> None:
    assert Checkpoint.open(sdxl_checkpoint).config("vae")["force_upcast"]
    components = Bundle.open(sdxl_bundle_fp16).manifest.components
    assert {name: part.precision for name, part in components.items()} == dict.fromkeys(COMPONENTS, "fp16")
    measured = {name for name, part in components.items() if part.numerics}
    assert measured == set(COMPONENTS) - {"sampler"}
    assert not any(part.numerics.islands for part in components.values() if part.numerics)


@pytest.mark.parametrize("component", COMPONENTS)
def test_graphs_pass_the_full_checker_with_strict_inference(sdxl_bundle_fp16: Path, component: str) -> None:
    model = load(sdxl_bundle_fp16, component)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert {domain.domain: domain.version for domain in model.opset_import} == {"": 23}


def test_attention_stays_one_node(sdxl_bundle: Path) -> None:
    """Two per transformer block: 22 in the tiny U-Net, one in each half of the VAE, one per layer of the encoders."""
    counts = {name: Counter(node.op_type for node in load(sdxl_bundle, name).graph.node) for name in COMPONENTS}
    assert counts["unet"]["Attention"] == 22
    assert counts["vae_decoder"]["Attention"] == counts["vae_encoder"]["Attention"] == 1
    assert not {op for count in counts.values() for op in count} & {"RandomNormal", "RandomNormalLike", "Dropout"}


@pytest.mark.parametrize(("fixture", "worst"), [("sdxl_bundle", 1e-4), ("sdxl_bundle_fp16", 3e-2)])
def test_the_manifest_holds_the_figures_of_every_case(
    request: pytest.FixtureRequest, fixture: str, worst: float
) -> None:
    components = Bundle.open(request.getfixturevalue(fixture)).manifest.components
    cases = {name: {figure.case for figure in part.parity} for name, part in components.items()}
    assert cases["unet"] == {"min", "opt", "max", "non-square", "odd", "two chunks"}
    assert cases["vae_decoder"] == cases["vae_encoder"] == {"min", "opt", "max", "non-square", "odd"}
    assert cases["text_encoder"] == cases["text_encoder_2"] == {"min", "opt", "max"}
    figures = [figure.relative for part in components.values() for figure in part.parity]
    assert 0 < max(figures) < worst
    odd = next(figure.sizes for figure in components["unet"].parity if figure.case == "odd")
    assert odd["latent_height"] % 2 == 1
    assert odd["latent_width"] % 2 == 1


def test_a_component_out_of_tolerance_fails_the_export_and_nothing_is_left(
    sdxl_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(VaeDecoder):
        """Right while torch is asked, wrong in the traced graph."""

        def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(latent * 1.05 if torch.compiler.is_exporting() else latent)

    monkeypatch.setitem(MODULES, "vae_decoder", ("vae", Wrong))
    checkpoint = Checkpoint.open(sdxl_checkpoint)
    specs = component_specs(checkpoint.model, Limits.around(128), dict.fromkeys(MODULES, "fp32"))
    with pytest.raises(
        ParityError, match=r"vae_decoder: output image differs from torch by .* in case 'min', allowed 1.1e-03"
    ):
        ComponentExporter(checkpoint, tmp_path, "fp32", "full").export(specs["vae_decoder"], "fp32")


def test_a_graph_with_other_ports_than_the_spec_is_refused(sdxl_checkpoint: Path, tmp_path: Path) -> None:
    spec = _sampler_spec(sdxl_checkpoint)
    graph = sampler_graph(spec)
    wrong = ComponentSpec(spec.name, (port("noise_pred", "float16", "rows"), *spec.inputs[1:]), spec.outputs, spec.dims)
    with pytest.raises(CheckpointError, match=r"sampler: noise_pred is float32.* in the graph, the spec has float16"):
        save(graph, wrong, tmp_path / "sampler.onnx")


def test_weights_above_the_limit_go_to_one_data_file(
    sdxl_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentrt.export.trace.EXTERNAL_BYTES", 1000)
    checkpoint = Checkpoint.open(sdxl_checkpoint)
    spec = component_specs(checkpoint.model, Limits.around(128), dict.fromkeys(MODULES, "fp32"))["text_encoder"]
    module = wrap("text_encoder", checkpoint.network("text_encoder", torch.float32), checkpoint.model)
    files = save(trace(module, spec, 768), spec, tmp_path / "text_encoder.onnx")
    assert [file.name for file in files] == ["text_encoder.onnx", "text_encoder.onnx.data"]
    assert files[0].stat().st_size < files[1].stat().st_size
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    ids = np.arange(2 * 77).reshape(2, 77)
    with torch.no_grad():
        wanted = module(torch.from_numpy(ids), torch.zeros(2, dtype=torch.int64))[0].numpy()
    found = session.run(None, {"input_ids": ids, "clip_skip": np.zeros(2, np.int64)})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_replacing_a_bundle_and_failing_keeps_the_old_one(
    sdxl_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("the old one")

    def fail(*_: object, **__: object) -> None:
        raise ParityError("text_encoder: planted")

    monkeypatch.setattr("latentrt.export.checks.parity.compare", fail)
    told: list[tuple[str, int, int]] = []
    with pytest.raises(ParityError, match="planted"):
        export_bundle(
            Checkpoint.open(sdxl_checkpoint),
            target,
            precision="fp32",
            depth="quick",
            progress=lambda *event: told.append(event),
        )
    phases = ["loading weights", "computing with torch", "tracing", "writing and checking", "comparing with torch"]
    assert told == [(f"text_encoder: {phase}", 0, 6) for phase in phases]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "manifest.json").read_text() == "the old one"


def test_a_bundle_works_from_another_folder(sdxl_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(sdxl_bundle, tmp_path / "moved")
    assert Bundle.open(moved).manifest == Bundle.open(sdxl_bundle).manifest


@pytest.mark.parametrize(("rows", "images", "history"), [(2, 1, 2), (6, 3, 2), (4, 4, 3)])
def test_the_sampler_graph_computes_its_equations(
    sdxl_checkpoint: Path, tmp_path: Path, rows: int, images: int, history: int
) -> None:
    spec = _sampler_spec(sdxl_checkpoint)
    save(sampler_graph(spec), spec, tmp_path / "sampler.onnx")
    sizes = {
        "rows": rows,
        "images": images,
        "history": history,
        "steps": 5,
        "noises": 5,
        "latent_height": 3,
        "latent_width": 5,
    }
    feed = sampler_inputs(spec, sizes)
    session = onnxruntime.InferenceSession(tmp_path / "sampler.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, feed)
    for output, ours, wanted in zip(spec.outputs, found, sampler_reference(feed), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4, err_msg=output.name)


def test_the_sampler_graph_marks_the_first_step_that_is_not_finite(sdxl_checkpoint: Path, tmp_path: Path) -> None:
    spec = _sampler_spec(sdxl_checkpoint)
    save(sampler_graph(spec), spec, tmp_path / "sampler.onnx")
    sizes = {"rows": 4, "images": 4, "history": 2, "steps": 5, "noises": 1, "latent_height": 3, "latent_width": 5}
    feed = {p.name: np.ones(p.shape(sizes), p.numpy_dtype) for p in spec.inputs}
    feed |= {
        "row_image": np.arange(4),
        "text_row": np.arange(4),
        "draws": np.zeros((4, 6), np.int64),
        "guidance": np.eye(4, dtype=np.float32),
        "step": np.array([2, 2, 2, 3]),
        "failed": np.array([-1, -1, -1, 1]),
    }
    feed["state"][1, 0, 0, 0, 0] = np.nan
    feed["state"][2, 0, 3, 2, 4] = np.inf
    feed["state"][3, 0, 0, 0, 0] = np.nan
    session = onnxruntime.InferenceSession(tmp_path / "sampler.onnx", providers=["CPUExecutionProvider"])
    (failed,) = session.run(["next_failed"], feed)
    assert failed.tolist() == [-1, 2, 2, 1]


def _sampler_spec(checkpoint: Path) -> ComponentSpec:
    model = Checkpoint.open(checkpoint).model
    return component_specs(model, Limits.around(128), dict.fromkeys(MODULES, "fp32"))["sampler"]


def test_quick_and_no_parity(sdxl_checkpoint: Path) -> None:
    model = Checkpoint.open(sdxl_checkpoint).model
    spec = component_specs(model, Limits.around(128), dict.fromkeys(MODULES, "fp32"))["unet"]
    assert [name for name, _ in parity.case_sizes(spec, "quick")] == ["min", "odd", "two chunks"]
    assert list(parity.case_sizes(spec, "off")) == []
