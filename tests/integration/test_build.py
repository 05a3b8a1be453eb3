"""Real TensorRT-RTX builds of hand-written graphs: keys, reuse, kills, and every way in which a build must fail."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from graph_bundles import ENGINES, FLOAT32_ENCODER, GRAPHS, LIMITS, write_graph_bundle

from latentrt.engine import tensorrt as tensorrt_builder
from latentrt.engine.base import BuildProgress
from latentrt.engine.build import build_engines
from latentrt.engine.checks import Tensor, check_ports
from latentrt.engine.folder import LOCK, BuildFolder
from latentrt.engine.progress import Tracker, monitor
from latentrt.runtime.backends import identity
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.build_record import BuildRecord
from latentrt.runtime.bundle.lora_slots import LoraLayers, LoraSlots, slot_ports
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.cache import locked
from latentrt.runtime.errors import BackendError, BuildError, PrecisionError, RequestError

pytest.importorskip("tensorrt_rtx")

BACKEND = "tensorrt-rtx"
FOLDER = "builds/tensorrt-rtx-fp16-sm80+"
SMALLER_VAE = LIMITS.replace(vae_images="1:1:1")
VAE = ["vae_decoder", "vae_encoder"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Of small graphs, in place of the hollow one."""
    return write_graph_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildRecord]:
    """A bundle that was built once; only copied."""
    bundle = write_graph_bundle(tmp_path_factory.mktemp("original") / "bundle")
    return bundle.path, build(bundle)[0]


@pytest.fixture
def built(original: tuple[Path, BuildRecord], tmp_path: Path) -> tuple[Bundle, BuildRecord]:
    """This test's own copy of the bundle that was built, and the record of that build."""
    folder, record = original
    return Bundle.open(shutil.copytree(folder, tmp_path / "bundle")), record


def build(bundle: Bundle, *arguments: Any, **named: Any) -> tuple[BuildRecord, list[str]]:
    """The build, and the components that were really built."""
    events: list[BuildProgress] = []
    record = build_engines(bundle, BACKEND, *arguments, progress=events.append, **named)
    return record, [event.component for event in events if event.phase == "done"]


def names(record: BuildRecord) -> list[str]:
    return sorted(Path(file).name for engine in record.engines.values() for file in engine.files)


def contents(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in (bundle.path / FOLDER).iterdir())


def check(bundle: Bundle, record: BuildRecord) -> None:
    bundle.check_build(record, **identity(BACKEND, record.target))


def test_a_build_has_every_engine_and_nothing_else(bundle: Bundle) -> None:
    record, built = build(bundle)
    assert built == list(record.engines) == ENGINES
    assert bundle.builds() == {record.name: record}
    assert contents(bundle) == sorted([LOCK, "build.json", *names(record)])
    check(bundle, record)
    unet = record.engines["unet_body"]
    assert unet.layers["CONVOLUTION float16"] == 2
    assert unet.layers["ATTENTION_INPUT float16"] == 1
    assert "attention layers: 1, decomposed for want of a dedicated kernel: 1" in unet.notes
    assert unet.seconds > 0


def test_building_again_does_nothing(built: tuple[Bundle, BuildRecord], caplog: pytest.LogCaptureFixture) -> None:
    bundle, first = built
    before = {path: path.stat().st_mtime_ns for path in (bundle.path / FOLDER).iterdir()}
    caplog.set_level(logging.INFO)
    assert build(bundle) == (first, [])
    assert before == {path: path.stat().st_mtime_ns for path in (bundle.path / FOLDER).iterdir()}
    assert "up to date" in caplog.text


@pytest.mark.parametrize(("layers", "inputs"), [("attention", 2), ("all", 6)])
def test_room_for_loras_lies_beside_the_plain_build(
    built: tuple[Bundle, BuildRecord], layers: LoraLayers, inputs: int
) -> None:
    """TensorRT-RTX takes the matrices as inputs, for products and for convolutions."""
    bundle, plain = built
    room = LoraSlots(rank=8, layers=layers)
    record, made = build(bundle, lora=room)
    assert made == list(record.engines) == ENGINES
    assert record.name == f"{plain.name}-lora8{'' if layers == 'attention' else '-all'}"
    assert bundle.builds() == {plain.name: plain, record.name: record}
    check(bundle, record)
    specs = bundle.engine_specs(record)
    assert sum(len(slot_ports(specs[part])) for part in ("unet_prologue", "unet_body")) == inputs
    assert len(slot_ports(specs["text_encoder"])) == 2
    assert not slot_ports(specs["vae_decoder"])
    assert record.engines["unet_prologue"].key.lora == f"LoRA rank 8, {layers} layers"
    assert build(bundle, lora=room) == (record, [])
    other, made = build(bundle, lora=LoraSlots(rank=4, layers=layers))
    assert made == ENGINES
    assert other.name != record.name


def test_layers_without_names_get_no_room(bundle: Bundle) -> None:
    file = bundle.onnx("text_encoder")
    model = onnx.load(file)
    for node in model.graph.node:
        node.ClearField("metadata_props")
    onnx.save(model, file)
    with pytest.raises(BuildError, match=r"does not say which layers its nodes are; .*Export the checkpoint again"):
        build(bundle, lora=LoraSlots(rank=8))


def test_other_bounds_rebuild_only_what_they_concern(built: tuple[Bundle, BuildRecord]) -> None:
    bundle, first = built
    second, built = build(bundle, SMALLER_VAE)
    assert built == VAE
    assert second.engines["unet_body"] == first.engines["unet_body"]
    assert second.limits == SMALLER_VAE
    assert contents(bundle) == sorted([LOCK, "build.json", *names(second)])
    check(bundle, second)
    assert build(bundle)[1] == VAE


def test_force_builds_everything_anew(built: tuple[Bundle, BuildRecord]) -> None:
    bundle, first = built
    second, built = build(bundle, force=True)
    assert built == ENGINES
    assert not set(names(first)) & set(names(second))
    third, _ = build(bundle, force=True)
    assert names(third) == names(first)
    check(bundle, third)


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"short"), Path.unlink])
def test_a_damaged_engine_is_built_anew(built: tuple[Bundle, BuildRecord], damage: Any) -> None:
    bundle, record = built
    (file,) = record.engines["unet_body"].files
    damage(bundle.path / file)
    record, built = build(bundle)
    assert built == ["unet_body"]
    check(bundle, record)


def test_a_damaged_record_is_replaced(built: tuple[Bundle, BuildRecord], caplog: pytest.LogCaptureFixture) -> None:
    bundle, _ = built
    (bundle.path / FOLDER / "build.json").write_text("{")
    record, built = build(bundle)
    assert built == ENGINES
    assert "build.json: not readable as a manifest" in caplog.text
    assert contents(bundle) == sorted([LOCK, "build.json", *names(record)])


def test_a_build_that_fails_keeps_the_build_before_and_what_it_finished(built: tuple[Bundle, BuildRecord]) -> None:
    bundle, first = built

    def interrupt(event: BuildProgress) -> None:
        if event.component == "vae_encoder" and event.phase not in ("starting", "parsing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, BACKEND, SMALLER_VAE, progress=interrupt)
    assert bundle.builds() == {first.name: first}
    check(bundle, first)
    assert not (bundle.path / FOLDER / ".new").exists()
    assert build(bundle, SMALLER_VAE)[1] == ["vae_encoder"]


KILLS = {
    "while the second engine is built": "progress = lambda event: event.component == 'vae_encoder' and die()",
    "before the first engine is listed": "BuildFolder.save = die",
    "before the first engine is moved": "BuildFolder.adopt = die",
    "before the build is replaced": "BuildFolder.commit = die",
    "before the old engines are removed": "BuildFolder.commit = lambda self, record: (write_record("
    "self.path / 'build.json', record), die())",
}
SCRIPT = """
import os, signal, sys
from graph_bundles import LIMITS
from latentrt.engine.build import build_engines
from latentrt.engine.folder import BuildFolder
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import write_record

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

progress = None
{kill}
build_engines(Bundle.open(sys.argv[1]), "tensorrt-rtx", LIMITS.replace(vae_images="1:1:1"), progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_leaves_a_whole_bundle(built: tuple[Bundle, BuildRecord], moment: str) -> None:
    bundle, _ = built
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    script = SCRIPT.format(kill=KILLS[moment])
    killed = subprocess.run([sys.executable, "-c", script, str(bundle.path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    opened = Bundle.open(bundle.path)
    (left,) = opened.builds().values()
    check(opened, left)
    expected = {
        "while the second engine is built": ["vae_encoder"],
        "before the first engine is listed": VAE,
        "before the first engine is moved": VAE,
    }
    record, built = build(opened, SMALLER_VAE)
    assert built == expected.get(moment, [])
    assert contents(opened) == sorted([LOCK, "build.json", *names(record)])
    check(opened, record)


def test_two_processes_do_not_build_at_once(bundle: Bundle) -> None:
    with (
        locked(bundle.path / FOLDER / LOCK, "busy"),
        pytest.raises(BuildError, match=rf"another process is building here \(process {os.getpid()}\)\. Wait for it"),
    ):
        build(bundle)
    assert build(bundle)[1] == ENGINES


def test_a_float32_convolution_fails_an_fp16_build(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",), graphs={"vae_encoder": FLOAT32_ENCODER})
    message = r"vae_encoder: CONVOLUTION \S* runs in float32, fp16 needs float16; 1 of 1 such layers differ\. Export"
    with pytest.raises(PrecisionError, match=message):
        build(bundle)
    assert not bundle.builds()


WRONG_PORTS = {
    "outputs are logvar, mean_value, the bundle says logvar, mean": ("mean", "mean_value"),
    r"image is float16\[\?, 3, 64, \?\] in the network, the bundle says float16\[vae_images, 3, 8": ("height", "64"),
    r"image is float16\[\?, \?, \?, \?\] in the network, the bundle says float16\[vae_images, 3": ("3", "c"),
}


@pytest.mark.parametrize("message", WRONG_PORTS)
def test_ports_that_are_not_the_bundles(tmp_path: Path, message: str) -> None:
    graph = """vae_encoder (F[images,3,height,width] image) => (F[images,4,h,w] mean, F[images,4,h,w] logvar)
        <F[4,192,1,1] KERNEL>
        { d = SpaceToDepth<blocksize=8>(image)
          mean = Conv(d, KERNEL)
          logvar = Identity(mean) }"""
    old, new = WRONG_PORTS[message]
    graph = graph.replace(f"{old}]", f"{new}]") if old in "3" else graph.replace(old, new)
    graph = graph.replace("images,3,", f"images,{new},") if old == "3" else graph
    with pytest.raises(BuildError, match=message):
        build(write_graph_bundle(tmp_path, ("vae_encoder",), graphs={"vae_encoder": graph}))


def test_a_network_in_another_dtype(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",), written="fp32")
    with pytest.raises(BuildError, match=r"image is float32\[\?, 3, \?, \?\] in the network, the bundle says float16"):
        build(bundle)


def test_parse_errors_name_the_node(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",))
    file = bundle.onnx("vae_encoder")
    file.write_bytes(file.read_bytes().replace(b"SpaceToDepth", b"SpaceToSpace"))
    with pytest.raises(BuildError, match=r"vae_encoder: .*onnx cannot be parsed: node .* \(SpaceToSpace\): .*lugin"):
        build(bundle)


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("vae_encoder",))
    bundle.onnx("vae_encoder").write_bytes(b"hello")
    with pytest.raises(BuildError, match="the network's inputs are none, the bundle says image"):
        build(bundle)


def test_a_build_that_tensorrt_refuses_names_the_first_cause(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_builder, "allow_decomposition", lambda trt, network: Counter())
    with pytest.raises(BuildError, match=r"unet_body: TensorRT cannot build it: .*not supported by a dedicated kernel"):
        build(bundle)
    monkeypatch.undo()
    assert build(bundle)[1] == ["unet_body", *VAE]


def test_float32(tmp_path: Path) -> None:
    record, _ = build(write_graph_bundle(tmp_path, precision="fp32"))
    assert record.name == "tensorrt-rtx-fp32-sm80+"
    assert record.engines["unet_prologue"].layers["MATRIX_MULTIPLY float32"] == 1


def test_targets(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("text_encoder",))
    record, _ = build(bundle, target="sm75")
    assert record.name == "tensorrt-rtx-fp16-sm75"
    assert build(bundle)[1] == ["text_encoder"]
    assert sorted(bundle.builds()) == ["tensorrt-rtx-fp16-sm75", "tensorrt-rtx-fp16-sm80+"]
    with pytest.raises(BuildError, match=r"target sm90: TensorRT-RTX \S+ builds for sm80\+, sm75, sm80, .*sm120"):
        build(bundle, target="sm90")


def test_builds_for_several_compute_capabilities_say_so(tmp_path: Path) -> None:
    bundle = write_graph_bundle(tmp_path, ("text_encoder",))
    record, built = build(bundle, target="sm89+sm86+sm89")
    assert (record.name, record.target) == ("tensorrt-rtx-fp16-sm86+sm89", "sm86+sm89")
    assert built == ["text_encoder"]
    assert build(bundle, target="sm86+sm89")[1] == []
    check(bundle, record)
    with pytest.raises(
        BuildError, match=r"target sm86\+sm90: TensorRT-RTX \S+ builds for .*, or several as in sm86\+sm89"
    ):
        build(bundle, target="sm86+sm90")


STATIC = LIMITS.replace(width="128", height="64", images="1", tokens="77", vae_images="1")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, tuple[int, ...]]]:
    """Filled by builds: for each engine, the shapes of its network's inputs and outputs as TensorRT knows them."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def note(spec: ComponentSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        found[spec.name] = {name: tensor.shape for name, tensor in {**inputs, **outputs}.items()}
        check_ports(spec, inputs, outputs)

    monkeypatch.setattr(tensorrt_builder, "check_ports", note)
    return found


def test_a_static_build_has_no_open_length(tmp_path: Path, lengths: dict[str, dict[str, tuple[int, ...]]]) -> None:
    """TensorRT itself infers the outputs' lengths from those of the inputs."""
    bundle = write_graph_bundle(tmp_path)
    record, built = build(bundle, STATIC.replace(guidance="on"))
    assert built == ENGINES
    check(bundle, record)
    assert lengths["unet_body"]["sample"] == lengths["unet_body"]["noise_pred"] == (2, 4, 8, 16)
    assert lengths["unet_prologue"]["encoder_hidden_states"] == (2, 77, 16)
    assert lengths["vae_decoder"] == {"latent": (1, 4, 8, 16), "image": (1, 64, 128, 3), "magnitude": (1,)}
    assert lengths["vae_encoder"]["mean"] == (1, 4, 8, 16)
    assert lengths["text_encoder"]["input_ids"] == (-1, 77)
    for name in ("unet_prologue", "unet_body", "vae_decoder", "vae_encoder"):
        assert record.engines[name].key.profiles == ()
        assert all(len(set(bounds.split(":"))) == 1 for bounds in record.engines[name].key.dims.values())
    assert build(bundle, STATIC)[1] == ["unet_prologue", "unet_body"]
    assert lengths["unet_body"]["sample"] == (-1, 4, 8, 16)
    assert bundle.builds()[record.name].engines["unet_body"].key.profiles == ({"rows": "2"}, {"rows": "1"})


def test_each_size_of_several_has_a_profile_of_its_own(
    tmp_path: Path, lengths: dict[str, dict[str, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, tuple[int, ...]]] = []
    make = tensorrt_builder.profile

    def note(builder: Any, inputs: Any, dims: Any) -> Any:
        made = make(builder, inputs, dims)
        given.extend((port.name, tuple(made.get_shape(port.name)[1])) for port in inputs)
        return made

    monkeypatch.setattr(tensorrt_builder, "profile", note)
    bundle = write_graph_bundle(tmp_path)
    limits = LIMITS.replace(profiles=["128x128", "64x192"], vae_images="1")
    record, built = build(bundle, limits)
    assert built == ENGINES
    check(bundle, record)
    assert record.limits == limits
    assert [shape for name, shape in given if name == "sample"] == [(2, 4, 16, 16), (2, 4, 24, 8)]
    assert [shape for name, shape in given if name == "latent"] == [(1, 4, 16, 16), (1, 4, 24, 8)]
    assert [shape for name, shape in given if name == "image"] == [(1, 3, 128, 128), (1, 3, 192, 64)]
    assert [shape for name, shape in given if name == "input_ids"] == [(2, 77)]
    assert lengths["vae_decoder"]["latent"] == (1, 4, -1, -1)
    assert record.engines["vae_encoder"].key.profiles[1] == {"latent_height": "24", "latent_width": "8"}
    assert build(bundle, limits)[1] == []
    assert build(bundle, LIMITS.replace(profiles=["128x128"], vae_images="1"))[1] == ["unet_body", *VAE]


def test_kernels_stay_until_an_engine_is_replaced(built: tuple[Bundle, BuildRecord]) -> None:
    bundle, record = built
    kernels = bundle.path / FOLDER / "kernels" / "tensorrt-rtx-1.7-geforce-rtx-4090.cache"
    kernels.parent.mkdir()
    kernels.write_bytes(b"kernels")
    assert build(bundle) == (record, [])
    assert bundle.kernels(record) == {kernels.name: 7}
    record, _ = build(bundle, SMALLER_VAE)
    assert bundle.kernels(record) == {}


def test_options_of_the_search_are_for_tensorrt_alone(bundle: Bundle) -> None:
    message = r"^--tiling, --aux-streams: only tensorrt has such options, tensorrt-rtx has none\. Leave them out$"
    with pytest.raises(RequestError, match=message):
        build(bundle, options=BuildOptions(tiling="full", aux_streams=1))
    assert not bundle.builds()


def test_unknown_backend(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="backend 'tensort' is unknown; the known ones are onnxruntime, tensorrt, t"):
        build_engines(bundle, "tensort")


def test_a_backend_that_is_not_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"tensorrt_rtx cannot be imported .*pip install 'latentrt\[tensorrt-rtx\]'"):
        build(bundle)


def test_progress_names_component_phase_and_time(bundle: Bundle) -> None:
    events: list[BuildProgress] = []
    build_engines(bundle, BACKEND, progress=events.append)
    assert [event.number for event in events if event.phase == "starting"] == [1, 2, 3, 4, 5]
    assert {event.count for event in events} == {5}
    assert all(event.seconds_left >= 0 for event in events)
    assert events[-1].seconds_left == 0
    assert {event.phase for event in events} > {"starting", "parsing", "done"}


def test_the_monitor_reports_steps_and_stops_a_build_whose_callback_raises() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    phases: list[str] = []
    watch = monitor(trt, phases.append, interval=0)
    watch.phase_start("Timing", None, 4)
    assert watch.step_complete("Timing", 0)
    watch.phase_finish("Timing")
    assert phases == ["Timing", "Timing 1/4"]

    def fail(_phase: str) -> None:
        raise OSError("the terminal is gone")

    watch = monitor(trt, fail, interval=0)
    watch.phase_start("Timing", None, 4)
    assert not watch.step_complete("Timing", 0)
    assert isinstance(watch.error, OSError)


def test_the_time_left_follows_what_was_measured() -> None:
    times: Iterator[float] = iter([0, 0, 20, 20, 20, 20, 25])
    events: list[BuildProgress] = []
    sizes = {"a": 10**9, "b": 2 * 10**9}
    tracker = Tracker(27.0, sizes, {"a": 10.0, "b": 30.0}, events.append, clock=lambda: next(times))
    tracker.begin("a")
    assert tracker.done() == 20
    tracker.begin("b")
    tracker.phase("timing")
    # "a" took twice as long as before, so "b" is expected to as well.
    assert [event.seconds_left for event in events] == [40, 60, 60, 55]


def test_leftovers_of_other_files_are_removed(built: tuple[Bundle, BuildRecord]) -> None:
    bundle, record = built
    (bundle.path / FOLDER / "unet-0.engine").write_bytes(b"old")
    (bundle.path / FOLDER / ".new").mkdir()
    (bundle.path / FOLDER / ".new" / "half.engine").write_bytes(b"half")
    assert build(bundle) == (record, [])
    assert BuildFolder(bundle.path, record.name).leftovers() == []


def test_attention_is_counted_by_whether_it_has_a_kernel(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wide = GRAPHS["unet"].replace("num_heads=2", "num_heads=1").replace(",8]", ",64]").replace("[8", "[64")
    wide = wide.replace("F[4,8,", "F[4,64,").replace("[0,8,-1]", "[0,64,-1]")
    record, _ = build(write_graph_bundle(tmp_path, ("unet",), graphs={"unet": wide}))
    assert "attention layers: 1, decomposed for want of a dedicated kernel: 0" in record.engines["unet_body"].notes
    record, _ = build(write_graph_bundle(tmp_path / "fp32", ("unet",), "fp32", graphs={"unet": wide}))
    assert "attention layers: 1, decomposed for want of a dedicated kernel: 1" in record.engines["unet_body"].notes
    assert "Internal Error" not in capfd.readouterr().err
