"""Forms of a graph on trial: the fastest that computes the same is kept, and the record says what the others did."""

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cuda_stand_in import StandInBackend, StandInBinding, StandInCuda
from graph_bundles import write_graph_bundle
from onnx_ir.passes import PassResult

from latentrt.engine import forms, trial
from latentrt.engine.build import build_engines
from latentrt.engine.forms import AS_EXPORTED, CHANNELS_LAST, FORMS, Form
from latentrt.engine.passes.group_norm import use_instance_norm
from latentrt.engine.passes.rewriting import MICROSOFT
from latentrt.runtime.backends import identity
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import BackendError, BuildError

BACKEND = "onnxruntime"


def scaled(model: ir.Model) -> PassResult:
    """A pass with a mistake: what it changes becomes twice as large."""
    if not convolutions(model):
        return PassResult(model, False)
    return between(model, ir.node("Add", [last(model), last(model)]))


def without_kernel(model: ir.Model) -> PassResult:
    """A pass whose operator ONNX Runtime has on CUDA alone."""
    if not convolutions(model):
        return PassResult(model, False)
    model.graph.opset_imports[MICROSOFT] = 1
    return between(model, ir.node("BiasAdd", [last(model)] * 3, domain=MICROSOFT))


def convolutions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Conv"]


def last(model: ir.Model) -> ir.Value:
    """What the last convolution reads."""
    value = convolutions(model)[-1].inputs[0]
    assert value is not None
    return value


def between(model: ir.Model, node: ir.Node) -> PassResult:
    node.outputs[0].name = f"{node.op_type}_between"
    model.graph.insert_before(convolutions(model)[-1], node)
    convolutions(model)[-1].replace_input_with(0, node.outputs[0])
    return PassResult(model, True)


def build_in_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *others: Form, whole: bool = True
) -> tuple[str, Bundle]:
    """The note of a U-Net's build that had these forms, and the bundle."""
    monkeypatch.setitem(FORMS, "cpu", (AS_EXPORTED, *others))
    bundle = write_graph_bundle(tmp_path, precision="fp32")
    record = build_engines(bundle, BACKEND, hoist=not whole)
    bundle.check_build(record, **identity(BACKEND, record.target))
    (note,) = record.engines["unet" if whole else "unet_body"].notes or ("",)
    return note, bundle


def operators(bundle: Bundle, engine: str = "unet") -> set[str]:
    (file,) = bundle.path.glob(f"builds/*/{engine}-*.onnx")
    return {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}


@pytest.mark.parametrize("faster", [True, False])
def test_the_fastest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    """By the clock that the trial reads: here one that says which engine is faster."""
    times = iter([2.0, 1.0] if faster else [1.0, 0.99])
    monkeypatch.setattr(trial.statistics, "median", lambda values: next(times))
    note, bundle = build_in_forms(tmp_path, monkeypatch, Form("instance norms", (use_instance_norm,)))
    assert ("InstanceNormalization" in operators(bundle)) == faster
    assert note == (
        "kept, of 2 forms tried: instance norms: 1000.00 ms. as exported: 2000.00 ms"
        if faster
        else "kept, of 2 forms tried: as exported: 1000.00 ms. instance norms: 990.00 ms"
    )
    assert len(list(bundle.path.glob("builds/*/unet-*"))) == 2, "files of the form that was not kept are left"


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form("faulty", (scaled,)), r"computes something else \(relative error [0-9.e+-]+\)"),
        (
            Form("fused", (without_kernel,)),
            r"cannot be built \(unet: ONNX Runtime cannot build .*BiasAdd.*\)",
        ),
    ],
)
def test_what_must_not_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, reason: str) -> None:
    monkeypatch.setattr(trial, "SMALLEST_WIN", float("inf"))  # whatever runs last wins
    note, _ = build_in_forms(tmp_path, monkeypatch, form)
    assert note.startswith("kept, of 2 forms tried: as exported: ")
    assert re.search(rf"ms\. {form.name}: ([0-9.]+ ms, )?{reason}$", note), note


def test_no_form_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise BackendError("out of memory")

    monkeypatch.setattr(trial.Trial, "_measure", refuse)
    reason = r"as exported: does not run \(out of memory\); instance norms: does not run \(out of memory\)"
    with pytest.raises(BuildError, match=rf"unet: no form of .*unet.onnx runs here. {reason}"):
        build_in_forms(tmp_path, monkeypatch, Form("instance norms", (use_instance_norm,)))


def test_results_that_differ_from_run_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed would not draw the same picture."""
    numbers = (np.array([number]) for number in itertools.count())
    monkeypatch.setattr(trial.Trial, "_outputs", lambda _trial, _binding: [next(numbers)])
    with pytest.raises(BuildError, match=r"instance norms: [0-9.]+ ms, its results differ from run to run"):
        build_in_forms(tmp_path, monkeypatch, Form("instance norms", (use_instance_norm,)))


@pytest.mark.parametrize("waits", [False, True])
def test_forms_are_timed_as_the_loop_runs_them(
    tmp_path: Path, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """As a CUDA graph; the note says why there is none."""
    run = StandInBinding.run

    def waiting(binding: StandInBinding) -> None:
        run(binding)
        binding._engine.backend.synchronize()

    if waits:
        monkeypatch.setattr(StandInBinding, "run", waiting)
    monkeypatch.setattr(trial, "open_backend", lambda backend, device: StandInBackend())
    note, _ = build_in_forms(tmp_path, monkeypatch, Form("instance norms", (use_instance_norm,)))
    launches = [name for name, *_ in gpu.calls].count("cudaGraphLaunch")
    reason = r"no CUDA graph \(cudaStreamSynchronize failed: \w+, \w+\)"
    if waits:
        assert len(re.findall(rf"[0-9.]+ ms, {reason}", note)) == 2, note
        assert launches == 0
    else:
        assert "no CUDA graph" not in note
        assert launches >= 2 * trial.RUNS


def test_graphs_without_a_form_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prologue has no group norm and no convolution."""
    monkeypatch.setattr(trial, "Trial", None)
    monkeypatch.setitem(FORMS, "cpu", FORMS["cuda"])
    bundle = write_graph_bundle(tmp_path, precision="fp32")
    (only,) = forms.forms_of("cpu", bundle.onnx("text_encoder"), tmp_path / "forms")
    assert only == (AS_EXPORTED, bundle.onnx("text_encoder"))


def test_a_graph_that_no_pass_changes_is_tried_with_channels_last(tmp_path: Path) -> None:
    """The encoder in small, like TAESD, has convolutions and nothing to fuse."""
    bundle = write_graph_bundle(tmp_path, precision="fp32")
    first, second = forms.forms_of("cuda", bundle.onnx("vae_encoder"), tmp_path / "forms")
    assert first == (AS_EXPORTED, bundle.onnx("vae_encoder"))
    assert second[0].options == CHANNELS_LAST


def test_options_alone_are_a_form_of_what_convolves(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, precision="fp32")
    form = Form("channels last", (), CHANNELS_LAST)
    assert form.write(bundle.onnx("text_encoder"), tmp_path / "a") is None
    file = form.write(bundle.onnx("unet"), tmp_path / "b")
    assert file == tmp_path / "b" / "unet.onnx"
    wanted, found = (onnx.load(one) for one in (bundle.onnx("unet"), file))
    for one, other in zip(wanted.graph.initializer, found.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
