"""Which engine files a pipeline loads, and what it says where it can load none."""

import logging
import re
import sys

import onnxruntime
import pytest
from cuda_stand_in import cudaError_t
from hollow_bundles import write_hollow_build, write_hollow_bundle
from json_files import edit_json

from latentrt.runtime.backends import cuda
from latentrt.runtime.backends.registry import CPU_PROVIDER, runnable_targets
from latentrt.runtime.backends.targets import cpu_target, normal_target
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import BUILD
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.unet_parts import PASSES
from latentrt.runtime.errors import BackendError, BundleError, StaleBuildError
from latentrt.runtime.pipeline import Pipeline

OTHER_TARGET = "cpu-riscv64-base"


def hide(monkeypatch, *modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def edit_key(bundle, build, engine, field, change):
    """Change one field of an engine's key in build.json."""

    def edit(content):
        key = content["engines"][engine]["key"]
        key[field] = change(key[field])

    edit_json(bundle.path / "builds" / build.name / BUILD, edit)


def test_a_build_for_this_machine_is_chosen_without_a_word(bundle, caplog):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    for names in ((), ("onnxruntime",), ("onnxruntime", "cpu"), (None, "cpu")):
        selection = select(bundle, *names)
        assert (selection.backend, selection.device) == ("onnxruntime", "cpu")
        folder = bundle.path / "builds" / build.name
        assert dict(selection.files) == {name: folder / f"{name}.engine" for name in bundle.manifest.components}
    assert not caplog.records


@pytest.mark.parametrize("installed", ["cuda-python", "nothing"])
def test_onnxruntime_for_gpus_runs_cpu_builds_where_there_is_no_driver(bundle, monkeypatch, gpu, installed, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU_PROVIDER])
    gpu.counted = (cudaError_t.cudaErrorInsufficientDriver, None)
    if installed == "nothing":
        monkeypatch.undo()
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU_PROVIDER])
        cuda.bindings.cache_clear()
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    for names in ((), ("onnxruntime",), ("onnxruntime", "cpu"), (None, "cpu")):
        selection = select(bundle, *names)
        assert (selection.device, selection.build) == ("cpu", None)
        assert "running its ONNX files through ONNX Runtime on cpu" in caplog.text
    write_hollow_build(bundle, "onnxruntime", "cuda-sm89")
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    for names in ((), ("onnxruntime",), ("onnxruntime", "cpu"), (None, "cpu"), (None, None, build.name)):
        selection = select(bundle, *names)
        assert (selection.device, selection.build) == ("cpu", build.name)
    message = r"cuda:0: .*Install an NVIDIA driver" if installed == "cuda-python" else "cuda-python cannot be imported"
    with pytest.raises(BackendError, match=message):
        select(bundle, None, "cuda:0")


def test_onnxruntime_for_gpus_prefers_the_gpu_that_is_there(bundle, monkeypatch, gpu):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU_PROVIDER])
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    build = write_hollow_build(bundle, "onnxruntime", "cuda-sm89")
    assert (select(bundle).device, select(bundle).build) == ("cuda:0", build.name)


def test_a_build_brings_its_own_limits(bundle):
    narrow = bundle.manifest.limits.replace(width="512:768:1024")
    write_hollow_build(bundle, "onnxruntime", cpu_target(), narrow)
    assert select(bundle).limits == narrow


def test_onnx_files_run_without_a_build_and_say_so_once(bundle, caplog):
    selection = select(bundle)
    assert (selection.backend, selection.device, selection.limits) == ("onnxruntime", "cpu", bundle.manifest.limits)
    assert selection.files["unet"] == bundle.path / "onnx" / "fp16" / "unet.onnx"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"{bundle.path}: no build for this machine; running its ONNX files through ONNX Runtime on cpu",
        )
    ]


def test_a_build_for_another_machine_is_not_used(bundle, caplog):
    write_hollow_build(bundle, "onnxruntime", OTHER_TARGET)
    assert select(bundle).files["unet"].suffix == ".onnx"
    assert "no build for this machine" in caplog.text


def test_no_backend_installed(bundle, monkeypatch):
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    hide(monkeypatch, "onnxruntime", "tensorrt", "tensorrt_rtx")
    with pytest.raises(BackendError, match=r"no backend is installed .* pip install 'latentrt\[cpu\]'"):
        select(bundle)
    with pytest.raises(BackendError, match="no backend is installed"):
        select(bundle, device="cpu")
    with pytest.raises(BackendError, match="no backend is installed"):
        Pipeline.load(bundle.path)


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "cpu"),
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx"),
    ],
)
def test_a_named_backend_that_is_not_installed(bundle, monkeypatch, backend, module, extra):
    hide(monkeypatch, module)
    message = rf"backend {backend}: {module} cannot be imported .* pip install 'latentrt\[{extra}\]'$"
    with pytest.raises(BackendError, match=message):
        select(bundle, backend)


def test_an_unknown_backend_names_the_known_ones(bundle):
    message = r"^backend 'tensorflow' is unknown; the known ones are onnxruntime, tensorrt, tensorrt-rtx$"
    with pytest.raises(BackendError, match=message):
        select(bundle, "tensorflow")


def test_a_named_backend_without_a_build(bundle):
    pytest.importorskip("tensorrt_rtx")
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    message = (
        f"{bundle.path}: no tensorrt-rtx build for this machine; it has onnxruntime-fp16-{cpu_target()}. "
        f"Build one with: build-engine {bundle.path} --backend tensorrt-rtx"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        select(bundle, "tensorrt-rtx")


def test_a_named_backend_without_any_build(bundle):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BundleError, match="no tensorrt-rtx build for this machine; it has none"):
        select(bundle, "tensorrt-rtx")


def test_tensorrt_does_not_run_on_a_cpu(bundle):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match="device cpu: tensorrt-rtx runs on NVIDIA GPUs only"):
        select(bundle, "tensorrt-rtx", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_an_unknown_device(bundle, device):
    with pytest.raises(BackendError, match=rf"^device '{device}': must be cpu or cuda:<index>, such as cuda:0$"):
        select(bundle, None, device)


def test_device_cuda_without_the_cuda_provider(bundle):
    library = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in library.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    message = r"^device cuda:0: this onnxruntime runs on .*CPUExecutionProvider.* latentrt\[cuda\]"
    with pytest.raises(BackendError, match=message):
        Pipeline.load(bundle, "onnxruntime", "cuda:0")


@pytest.mark.parametrize(
    ("field", "change", "difference"),
    [
        ("backend_version", lambda value: "0.9", "backend_version 0.9, needed "),
        ("latentrt", lambda value: "0.0.1", "latentrt 0.0.1, needed "),
        ("target", lambda value: OTHER_TARGET, f"target {OTHER_TARGET}, needed {cpu_target()}"),
        (
            "dims",
            lambda dims: dims | {"latent_width": "8:16:24"},
            "dims latent_width 8:16:24, needed latent_width 64:128:192",
        ),
        ("precision", lambda value: "fp32", "precision fp32, needed fp16"),
        ("options", lambda value: "faster", "options faster, needed none"),
        ("backend", lambda value: "tensorrt", "backend tensorrt, needed onnxruntime"),
        ("content", lambda value: "1" * 64, f"content {'1' * 16}…, needed "),
        (
            "inputs",
            lambda ports: ports | {"timestep": "float32[1]"},
            "inputs timestep float32[1], needed timestep float32[rows]",
        ),
        ("outputs", lambda ports: {}, "outputs none, needed noise_pred float16[rows, 4, latent_height, latent_width]"),
    ],
)
def test_a_stale_build_names_the_field_and_the_command(bundle, field, change, difference):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    edit_key(bundle, build, "unet", field, change)
    with pytest.raises(StaleBuildError) as caught:
        select(bundle)
    message = str(caught.value)
    assert message.startswith(f"{bundle.path}, build {build.name}: unet {difference}")
    assert message.endswith(f". Rebuild with: build-engine {bundle.path} --backend onnxruntime")


def test_the_command_of_a_stale_build_keeps_its_ranges(bundle):
    limits = bundle.manifest.limits.replace(width="512:1024:1600", vae_images="1:2:2")
    build = write_hollow_build(bundle, "onnxruntime", cpu_target(), limits)
    edit_key(bundle, build, "unet", "latentrt", lambda value: "0.0.1")
    command = f"build-engine {bundle.path} --backend onnxruntime --width 512:1024:1600 --vae-images 1:2:2"
    with pytest.raises(StaleBuildError, match=re.escape(f"Rebuild with: {command}") + "$"):
        select(bundle)


def test_a_build_with_the_unet_in_two_parts(bundle):
    limits = bundle.manifest.limits.replace(width="512:768:1024")
    build = write_hollow_build(bundle, "onnxruntime", cpu_target(), limits, hoisted=True)
    selection = select(bundle)
    assert list(selection.specs) == list(build.engines) == list(selection.files)
    assert "unet" not in selection.specs
    prologue, body = selection.specs["unet_prologue"], selection.specs["unet_body"]
    assert [port.name for port in body.inputs] == ["sample", "timestep", "key"]
    assert body.inputs[-1] == prologue.outputs[0]
    assert str(body.dims["latent_width"]) == "64:96:128"
    assert list(prologue.dims) == ["rows", "tokens"]


@pytest.mark.parametrize(
    ("engine", "field", "change", "difference"),
    [
        ("unet_body", "passes", lambda value: value + 1, f"unet_body passes {PASSES + 1}, needed {PASSES}"),
        ("unet_prologue", "content", lambda value: "1" * 64, f"unet_prologue content {'1' * 16}…, needed "),
        (
            "unet_body",
            "dims",
            lambda dims: dims | {"rows": "1:2:2"},
            "unet_body dims rows 1:2:2, needed rows ",
        ),
        (
            "unet_body",
            "inputs",
            lambda ports: ports | {"key": "float16[rows, 10, tokens, 32]"},
            "unet_body: nothing gives its input key.",
        ),
        ("unet_body", "inputs", lambda ports: ports | {"key": "half[rows]"}, "key 'half[rows]': dtype 'half' is none "),
        (
            "unet_prologue",
            "outputs",
            lambda ports: ports | {"key": "float16[words]"},
            "unet_prologue: its ports have the dims words, which unet has not.",
        ),
        ("unet_body", "outputs", lambda ports: {}, "unet_body: its outputs are not unet's."),
    ],
)
def test_parts_that_do_not_fit(bundle, engine, field, change, difference):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target(), hoisted=True)
    edit_key(bundle, build, engine, field, change)
    with pytest.raises(StaleBuildError) as caught:
        select(bundle)
    message = str(caught.value)
    assert f"{bundle.path}, build {build.name}: {difference}" in message
    assert message.endswith(f". Rebuild with: build-engine {bundle.path} --backend onnxruntime")


def test_a_build_that_lacks_one_part(bundle):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target(), hoisted=True)
    edit_json(bundle.path / "builds" / build.name / BUILD, lambda content: content["engines"].pop("unet_prologue"))
    with pytest.raises(StaleBuildError, match=r"unet is missing\. Rebuild with: build-engine"):
        select(bundle)


def test_a_build_that_lacks_a_component(bundle):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    edit_json(bundle.path / "builds" / build.name / BUILD, lambda content: content["engines"].pop("vae_decoder"))
    with pytest.raises(StaleBuildError, match=r"vae_decoder is missing\. Rebuild with: build-engine"):
        select(bundle)


def test_an_exported_file_that_changed_makes_a_build_stale(bundle):
    write_hollow_build(bundle, "onnxruntime", cpu_target())
    name = "onnx/fp16/vae_decoder.onnx"
    edit_json(bundle.path / "manifest.json", lambda content: content["files"][name].update(sha256="2" * 64))
    with pytest.raises(StaleBuildError, match=rf"vae_decoder content [0-9a-f]{{16}}…, needed {'2' * 16}…\. Rebuild"):
        select(Bundle.open(bundle.path))


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_an_engine_file_that_is_not_whole(bundle, damage):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    file = bundle.path / "builds" / build.name / "unet.engine"
    size = file.stat().st_size
    if damage == "missing":
        file.unlink()
        message = rf"{file}: missing\. Rebuild with: build-engine"
    else:
        file.write_text("x")
        message = rf"{file}: 1 bytes, the manifest says {size}\. Rebuild with: build-engine"
    with pytest.raises(BundleError, match=message):
        select(bundle)


def test_a_build_for_another_backend_is_no_reason_to_fail(bundle, monkeypatch, caplog):
    pytest.importorskip("tensorrt_rtx")
    write_hollow_build(bundle, "tensorrt-rtx", "sm80+")
    hide(monkeypatch, "tensorrt_rtx")
    with caplog.at_level(logging.INFO, logger="latentrt"):
        assert select(bundle).backend == "onnxruntime"
    assert "tensorrt-rtx: not used, backend tensorrt-rtx: tensorrt_rtx cannot be imported" in caplog.text


def test_limits_that_are_the_bundles_own_are_not_repeated_in_the_command(bundle):
    assert bundle.build_command("tensorrt", bundle.manifest.limits).endswith("--backend tensorrt")
    wide = bundle.manifest.limits.replace(images="1:1:8")
    assert bundle.build_command("tensorrt", wide).endswith("--backend tensorrt --images 1:1:8")


def test_a_path_with_spaces_is_quoted_in_the_command(tmp_path):
    bundle = write_hollow_bundle(tmp_path / "my bundle", Limits.around(512))
    assert bundle.build_command("tensorrt", bundle.manifest.limits).startswith(f"build-engine '{bundle.path}' ")


def test_a_build_can_be_named(bundle):
    build = write_hollow_build(bundle, "onnxruntime", cpu_target())
    selection = select(bundle, build=build.name)
    assert selection == select(bundle, "onnxruntime", build=build.name) == select(bundle)
    assert selection.files["unet"].parent.name == build.name


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("mine", None, r"no build is called 'mine'; it has onnxruntime-fp16-cpu-riscv64-base$"),
        (
            "onnxruntime-fp16-cpu-riscv64-base",
            "tensorrt-rtx",
            r"is for onnxruntime, not for tensorrt-rtx\. Name only one$",
        ),
        (
            "onnxruntime-fp16-cpu-riscv64-base",
            None,
            r"is for cpu-riscv64-base, which this machine is not\. Build one for it with: build-engine .*my-bundle",
        ),
    ],
)
def test_a_named_build_that_is_not_there_or_not_for_this(bundle, monkeypatch, name, backend, message):
    monkeypatch.setattr("latentrt.runtime.build_selection.load_module", lambda backend: onnxruntime)
    write_hollow_build(bundle, "onnxruntime", OTHER_TARGET)
    with pytest.raises(BundleError, match=message):
        select(bundle, backend, build=name)


def test_the_build_that_suits_the_card_best_is_chosen(bundle, gpu):
    """One for its compute capability alone, then one for the fewest, then the portable one."""
    pytest.importorskip("tensorrt_rtx")
    for target in ("sm86", "sm75+sm86"):
        write_hollow_build(bundle, "tensorrt-rtx", target)
    assert select(bundle).backend == "onnxruntime"
    for target in ("sm80+", "sm80+sm86+sm89", "sm86+sm89", "sm89"):
        build = write_hollow_build(bundle, "tensorrt-rtx", target)
        assert (select(bundle).build, select(bundle).device) == (build.name, "cuda:0")
        assert build.name == f"tensorrt-rtx-fp16-{target}"
    gpu.capability = (7, 5)
    assert select(bundle).build == "tensorrt-rtx-fp16-sm75+sm86"
    with pytest.raises(BundleError, match=r"is for sm86\+sm89, which this machine is not"):
        select(bundle, build="tensorrt-rtx-fp16-sm86+sm89")
    gpu.capability = (8, 6)
    assert select(bundle, build="tensorrt-rtx-fp16-sm86+sm89").build == "tensorrt-rtx-fp16-sm86+sm89"


@pytest.mark.parametrize(
    ("target", "normal"),
    [
        ("sm80+", "sm80+"),
        ("sm120+sm89+sm89", "sm89+sm120"),
        ("sm89", "sm89"),
        ("sm89+", "sm89+"),
        ("sm89-linux-geforce-rtx-4090", "sm89-linux-geforce-rtx-4090"),
    ],
)
def test_targets_are_named_one_way(target, normal):
    assert normal_target(target) == normal


def test_the_command_of_a_stale_build_keeps_its_target_and_options(bundle, gpu, monkeypatch):
    monkeypatch.setattr("latentrt.runtime.backends.registry.load_module", lambda name: onnxruntime)
    monkeypatch.setattr("latentrt.runtime.build_selection.load_module", lambda name: onnxruntime)
    options = BuildOptions(optimization_level=5, tiling="none")
    limits = bundle.manifest.limits.replace(guidance="on")
    (target,) = runnable_targets("tensorrt", "cuda:0")
    build = write_hollow_build(bundle, "tensorrt", target, limits, options=options, named_target=True)
    assert select(bundle).build == build.name
    assert build.engines["unet"].key.options.endswith(
        "optimization level 5, timing iterations 4, tiling none, aux streams 0"
    )
    edit_key(bundle, build, "unet", "options", lambda value: value.replace("level 5", "level 4"))
    command = f"--backend tensorrt --guidance on --target {target} --optimization-level 5 --tiling none"
    with pytest.raises(StaleBuildError, match=f"unet options .*, needed .*Rebuild with: build-engine .* {command}$"):
        select(bundle)
