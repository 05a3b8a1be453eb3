"""Builds whose U-Net is split: when it is split, with which weights, and when a split is out of date."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graph_bundles import ENGINES, GRAPHS, LIMITS, write_graph_bundle

from latentrt.engine import build as building
from latentrt.engine import split_unet as parts
from latentrt.engine.build import build_engines
from latentrt.runtime.backends import identity
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle import unet_parts as runtime_parts
from latentrt.runtime.errors import BuildError, StaleBuildError

BACKEND = "onnxruntime"
WHOLE = list(GRAPHS)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_graph_bundle(tmp_path / "bundle", precision="fp32")


def build(bundle: Bundle, **named: Any) -> tuple[list[str], list[str]]:
    """The engines of the build, and those that were really built."""
    events: list[Any] = []
    record = build_engines(bundle, BACKEND, progress=events.append, **named)
    bundle.check_build(record, **identity(BACKEND, record.target))
    return list(record.engines), [event.component for event in events if event.phase == "done"]


def run(file: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()}), strict=True))


def test_hoisting_and_back(bundle: Bundle) -> None:
    assert build(bundle) == (ENGINES, ENGINES)
    assert build(bundle) == (ENGINES, [])
    assert build(bundle, hoist=False) == (WHOLE, ["unet"])
    assert build(bundle, hoist=False) == (WHOLE, [])
    assert build(bundle) == (ENGINES, ["unet_prologue", "unet_body"])


def test_a_chain_of_both_gives_the_same_numbers(bundle: Bundle) -> None:
    spec = bundle.manifest.specs()["unet"]
    sizes = {"rows": 3, "tokens": 154, "latent_height": 9, "latent_width": 11}
    draw = np.random.default_rng(0).standard_normal
    outputs = []
    for hoist in (False, True):
        build(bundle, hoist=hoist)
        selection = select(bundle, BACKEND, "cpu")
        backend = selection.open()
        engine = selection.load_component(backend, spec)
        binding = engine.bind(sizes)
        buffers = binding.buffers
        for port in spec.inputs:
            buffers[port.name].write(draw(port.shape(sizes)) if not outputs else outputs[0][1][port.name])
        binding.run()
        outputs.append((buffers["noise_pred"].numpy(), {port.name: buffers[port.name].numpy() for port in spec.inputs}))
        engine.close()
        backend.close()
    # Not the same bits: the passes before the split normalise groups by another operator.
    np.testing.assert_allclose(outputs[1][0], outputs[0][0], rtol=1e-4, atol=1e-5)


def test_another_version_of_the_passes_is_out_of_date(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)
    for module in (runtime_parts, building):
        monkeypatch.setattr(module, "PASSES", 9)
    with pytest.raises(StaleBuildError, match=r"text_encoder passes \d, needed 9"):
        select(bundle)
    assert build(bundle) == (ENGINES, ENGINES)


def test_another_picture_size_leaves_the_prologue(bundle: Bundle) -> None:
    build(bundle)
    assert build(bundle, limits=LIMITS.replace(vae_images="1:1:1"))[1] == ["vae_decoder", "vae_encoder"]
    assert build(bundle, limits=LIMITS.replace(width="64:64:64"))[1] == ["unet_body", "vae_decoder", "vae_encoder"]


def test_what_was_moved_is_logged_and_recorded(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    record = build_engines(bundle, BACKEND)
    assert "unet: use_instance_norm, 15 nodes become 19" in caplog.text
    assert "unet: fold_lengths" not in caplog.text, "it changes nothing here"
    assert "unet: hoist moves 1 nodes and 0.00 M parameters out of the loop, 1 tensors cross" in caplog.text
    note = "once per request instead of every step: 1 nodes, 0.00 M parameters; 1 tensors go to unet_body"
    assert record.engines["unet_prologue"].notes == (note,)
    assert record.engines["unet_body"].key.inputs["key"] == "float32[rows, tokens, 8]"


def test_nothing_to_move_although_there_is_a_prompt(tmp_path: Path) -> None:
    graph = (
        GRAPHS["unet"]
        .replace("MatMul(encoder_hidden_states, TO_KEY)", "MatMul(encoder, TO_KEY)")
        .replace(
            "{ c = Conv",
            "{ line = Cast<to=TYPE>(timestep) \n ax = Constant<value_ints=[1,2]>() "
            "\n all = Unsqueeze(line, ax) \n encoder = Add(encoder_hidden_states, all) \n c = Conv",
        )
    )
    bundle = write_graph_bundle(tmp_path, ("unet",), graphs={"unet": graph})
    message = "unet: nothing could be moved out of the loop, although encoder_hidden_states does not change in it. "
    with pytest.raises(BuildError, match=message + "Build it whole with --no-hoist"):
        build_engines(bundle, BACKEND)
    assert list(build_engines(bundle, BACKEND, hoist=False).engines) == ["unet"]
    assert not list(tmp_path.glob("builds/*/.graphs"))


@pytest.mark.parametrize("same_disk", [True, False])
def test_weights_in_a_data_file_are_not_copied_on_one_disk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool
) -> None:
    source = tmp_path / "unet.onnx"
    ir.save(ir.load(bundle.onnx("unet")), source, external_data="weights", size_threshold_bytes=0)
    if not same_disk:

        def refuse(*_: Any) -> None:
            raise OSError("another disk")

        monkeypatch.setattr(os, "link", refuse)
    split = parts.split_file(source, tmp_path / "parts", "cpu")
    assert os.path.samefile(tmp_path / "weights", tmp_path / "parts" / "weights") == same_disk
    sizes = [(tmp_path / "parts" / f"unet_{name}.onnx").stat().st_size for name in ("prologue", "body")]
    assert sum(sizes) < 4000
    assert split.interface == ("key",)
    feeds = {
        "sample": np.ones((2, 4, 8, 8), "f4"),
        "timestep": np.ones(2, "f4"),
        "encoder_hidden_states": np.ones((2, 77, 16), "f4"),
    }
    wanted = run(bundle.onnx("unet"), feeds)
    feeds |= run(tmp_path / "parts" / "unet_prologue.onnx", feeds)
    np.testing.assert_array_equal(run(tmp_path / "parts" / "unet_body.onnx", feeds)["noise_pred"], wanted["noise_pred"])


def test_a_file_that_is_no_graph(bundle: Bundle) -> None:
    bundle.onnx("unet").write_bytes(b"hello")
    with pytest.raises(BuildError, match=r"unet: .*unet.onnx cannot be read: "):
        build_engines(bundle, BACKEND)
