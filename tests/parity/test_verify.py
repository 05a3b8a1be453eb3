"""`latentrt verify` passes a sound bundle and catches planted faults."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from latentrt.cli.main import application
from latentrt.engine.build import build_engines
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import MANIFEST, describe_file
from latentrt.runtime.errors import BundleError


def verify(bundle: Path, checkpoint: Path, *options: str) -> tuple[int, dict]:
    command = ["verify", str(bundle), "--reference", str(checkpoint), "--backend", "onnxruntime", *options]
    found = CliRunner().invoke(application(), command, catch_exceptions=False)
    return found.exit_code, json.loads(found.stdout.strip().splitlines()[-1])


def edit_manifest(bundle: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def scale_weight(bundle: Path, component: str, initializer: str, factor: float) -> None:
    file = bundle / "onnx" / "fp32" / f"{component}.onnx"
    model = onnx.load(file)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == initializer)
    values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, initializer))
    onnx.save(model, file)


def swap_tokenizers(bundle: Path) -> None:
    first, second, aside = bundle / "tokenizer", bundle / "tokenizer_2", bundle / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)

    def describe(manifest: dict) -> None:
        for name in manifest["files"]:
            if name.startswith("tokenizer"):
                manifest["files"][name] = describe_file(bundle / name).model_dump()

    edit_manifest(bundle, describe)


def test_a_sound_bundle_passes(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    code, result = verify(sdxl_copy, sdxl_checkpoint)
    assert (code, result["passed"], result["differences"]) == (0, True, [])
    assert {figure["component"] for figure in result["figures"]} == {
        "text_encoder",
        "text_encoder_2",
        "unet",
        "vae_decoder",
        "vae_encoder",
        "sampler",
        "picture",
    }
    picture = result["figures"][-1]
    assert picture["max_abs"] <= 2
    assert picture["psnr"] > 50


@pytest.mark.slow
def test_a_build_is_verified_by_its_name(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    name = build_engines(Bundle.open(sdxl_copy), "onnxruntime").name
    code, result = verify(sdxl_copy, sdxl_checkpoint, "--build", name)
    assert (code, result["passed"]) == (0, True)


def test_a_build_that_is_not_there(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="no build is called 'mine'; it has none"):
        verify(sdxl_copy, sdxl_checkpoint, "--build", "mine")


def test_a_build_in_two_parts_is_compared_as_a_whole(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    build_engines(Bundle.open(sdxl_copy), "onnxruntime")
    code, result = verify(sdxl_copy, sdxl_checkpoint)
    assert (code, result["passed"]) == (0, True)
    figures = [figure for figure in result["figures"] if figure["component"].startswith("unet")]
    assert {(figure["component"], figure["output"]) for figure in figures} == {("unet", "noise_pred")}
    assert len(figures) > 1


def test_one_changed_weight_is_found_in_its_component(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    scale_weight(sdxl_copy, "unet", "network.conv_in.weight", 1.05)
    code, result = verify(sdxl_copy, sdxl_checkpoint)
    assert code == 1
    assert {figure["component"] for figure in result["figures"] if not figure["passed"]} >= {"unet"}
    sound = [figure for figure in result["figures"] if figure["component"] not in ("unet", "picture")]
    assert all(figure["passed"] for figure in sound)


def test_layers_names_the_first_tensor_that_departs(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    scale_weight(sdxl_copy, "vae_encoder", "network.encoder.down_blocks.1.resnets.0.conv1.weight", 1.05)
    code, result = verify(sdxl_copy, sdxl_checkpoint, "--layers")
    assert code == 1
    (departure,) = result["departures"]
    assert (departure["component"], departure["operator"]) == ("vae_encoder", "Conv")
    graph = onnx.load(sdxl_copy / "onnx" / "fp32" / "vae_encoder.onnx").graph
    (node,) = (node for node in graph.node if departure["tensor"] in node.output)
    assert node.input[1] == "network.encoder.down_blocks.1.resnets.0.conv1.weight"
    assert departure["compared"] > 10


@pytest.mark.parametrize(
    ("plant", "difference"),
    [
        (swap_tokenizers, "tokenizer gives other tokens than the checkpoint's, first for ''"),
        (
            lambda bundle: edit_manifest(bundle, lambda manifest: manifest["model"].update(scaling_factor=0.18215)),
            "scaling_factor is 0.18215 in the bundle, 0.13025 in the checkpoint",
        ),
        (
            lambda bundle: edit_manifest(
                bundle, lambda manifest: manifest["model"]["scheduler"].update(beta_end=0.012 * 1.01)
            ),
            "scheduler is ",
        ),
    ],
    ids=["tokenizers swapped", "scaling factor of another family", "a sampler constant off by 1 %"],
)
def test_a_fact_that_differs_is_named(
    sdxl_copy: Path, sdxl_checkpoint: Path, plant: Callable[[Path], None], difference: str
) -> None:
    plant(sdxl_copy)
    code, result = verify(sdxl_copy, sdxl_checkpoint)
    assert code == 1
    assert any(found.startswith(difference) for found in result["differences"]), result["differences"]


def test_a_sampler_graph_that_computes_something_else_is_found(sdxl_copy: Path, sdxl_checkpoint: Path) -> None:
    file = sdxl_copy / "onnx" / "fp32" / "sampler.onnx"
    model = onnx.load(file)
    (node,) = (node for node in model.graph.node if "guided" in node.output)
    half = onnx.helper.make_tensor("nearly_one", onnx.TensorProto.FLOAT, [], [1.01])
    model.graph.initializer.append(half)
    node.output[0] = "unscaled"
    index = list(model.graph.node).index(node)
    model.graph.node.insert(index + 1, onnx.helper.make_node("Mul", ["unscaled", "nearly_one"], ["guided"]))
    onnx.save(model, file)
    edit_manifest(
        sdxl_copy,
        lambda manifest: manifest["files"].update({"onnx/fp32/sampler.onnx": describe_file(file).model_dump()}),
    )
    code, result = verify(sdxl_copy, sdxl_checkpoint)
    assert code == 1
    assert "sampler" in {figure["component"] for figure in result["figures"] if not figure["passed"]}
