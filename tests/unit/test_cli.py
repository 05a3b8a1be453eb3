"""The command line: exit codes, one JSON line on stdout, errors in one sentence, names resolved to bundles."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import graph_bundles
import pytest
from command_line import run_main
from hollow_bundles import write_hollow_bundle
from loras import LINEAR, write_lora

from latentrt.cli.ending import run_command
from latentrt.cli.main import build_engine
from latentrt.cli.options import BackendName
from latentrt.runtime.backends import BACKENDS
from latentrt.runtime.bundle.bundle import bundle_folder
from latentrt.runtime.cache import cache_folder
from latentrt.runtime.errors import LatentRTError

COMMANDS = ("export", "build-engine", "generate", "inspect", "doctor", "bench", "demo")
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """An empty LATENTRT_HOME and an empty working folder."""
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def failed(run):
    """The one sentence of a run that ended with an error of latentrt's own."""
    assert run.exit == 1
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    return run.error


# Usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    run = run_main(capsys, command, "--help")
    assert run.exit == 0
    assert f"latentrt {command} [OPTIONS]" in run.stdout
    assert "--help" in run.stdout


def test_help_lists_every_command(capsys):
    run = run_main(capsys, "--help")
    assert run.exit == 0
    assert [command for command in COMMANDS if f" {command} " not in run.stdout] == []


def test_build_engine_is_a_command_of_its_own(capsys):
    run = run_main(capsys, "--help", entry=build_engine)
    assert run.exit == 0
    for words in ("build-engine [OPTIONS]", "SOURCE", "--backend", "--width", "--vae-images"):
        assert words in run.stdout


def test_no_command_at_all_is_wrong_usage(capsys):
    run = run_main(capsys)
    assert run.exit == 2
    assert "COMMAND [ARGS]" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paint"], "No such command 'paint'"),
        (["inspect"], "Missing argument 'BUNDLE'"),
        (["inspect", "x", "--colour"], "No such option: --colour"),
        (["export", "x"], "Missing option '--output'"),
        (["export", "x", "-o", "y", "--precision", "fp8"], "'fp8' is not one of 'fp16', 'fp32'"),
        (["build-engine", "x"], "Missing option '--backend'"),
        (["build-engine", "x", "--backend", "cuda"], "'cuda' is not one of 'onnxruntime', 'tensorrt', 'tensorrt-rtx'"),
        (["generate", "x"], "Missing argument 'PROMPT'"),
        (["generate", "x", "a cat", "--steps", "many"], "Invalid value for '--steps'"),
        (["generate", "x", "a cat", "a dog"], "unexpected extra argument"),
        (["generate", "x", "a cat", "--prompts-file", "y"], "PROMPT and --prompts-file y: both given"),
        (["generate", "x", "a cat", "--mask", "y.png"], "--mask: needs --image too"),
        (["generate", "x", "a cat", "--strength", "0.5"], "--strength: needs --image too"),
        (["generate", "x", "a cat", "--image", "y.png", "--paste-back"], "--paste-back: needs --mask too"),
        (["generate", "x", "a cat", "--refiner-start", "0.8"], "--refiner-start: needs --refiner too"),
        (["generate", "x", "a cat", "--refiner-strength", "0.3"], "--refiner-strength: needs --refiner too"),
        (["generate", "x", "a cat", "--upscale-strength", "0.3"], "--upscale-strength: needs --upscale too"),
        (
            ["generate", "x", "a cat", "--refiner", "y", "--refiner-start", "0.8", "--refiner-strength", "0.3"],
            "--refiner-start and --refiner-strength do not go together: the refiner takes over before the end, or",
        ),
        (
            ["generate", "x", "a cat", "--refiner", "y", "--upscale", "2"],
            "--refiner and --upscale do not go together: there is one second pass",
        ),
        (
            ["generate", "x", "a cat", "--image", "y.png", "--upscale", "2"],
            "--image and --upscale do not go together: the high-resolution fix begins with a prompt alone",
        ),
        (
            ["generate", "x", "a cat", "--image", "y.png", "--refiner", "y", "--refiner-strength", "0.3"],
            "--image and --refiner-strength do not go together: two passes begin with a prompt alone",
        ),
        (
            ["generate", "x", "a cat", "--schedule", "steep"],
            "'--schedule': schedule 'steep': latentrt knows align_your",
        ),
        (["generate", "x", "a cat", "--timesteps", "nine"], "'nine' is not a list of numbers, such as 999,749,499,249"),
        (["generate", "x", "a cat", "--schedule", "rhoo=7"], "'rhoo=7' is not FIELD=VALUE with one of the fields"),
        (["generate", "x", "a cat", "--guidance-interval", "0.2"], "'0.2' is not FROM:TO, such as 0.2:0.8"),
        (["generate", "x", "a cat", "--original-size", "64"], "'64' is not two whole numbers, across x down"),
        (["generate", "x", "a cat", "--crop", "1,2"], "Invalid value for '--crop': '1,2' is not two whole numbers"),
        (["doctor", "now"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments, words):
    run = run_main(capsys, *arguments)
    assert run.exit == 2
    assert run.stdout == ""
    assert words in re.sub(r"[│\s]+", " ", run.stderr)
    assert "Traceback" not in run.stderr


def test_the_backends_offered_are_the_backends_there_are():
    assert {name.value for name in BackendName} == set(BACKENDS)


def test_an_error_is_one_line_and_exit_code_1(capsys):
    def fail():
        raise LatentRTError("width 7 [in brackets]: too narrow")

    with pytest.raises(SystemExit) as caught:
        run_command(fail)
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "LatentRTError: width 7 [in brackets]: too narrow\n")


def test_an_interrupted_run(capsys):
    def stop():
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught:
            run_command(stop)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "a second one would end in a traceback"
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "stopped; nothing was left half done\n")


def test_an_error_that_is_not_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize("script", ["latentrt", "build-engine"])
def test_the_installed_scripts(script, tmp_path):
    arguments = {"latentrt": ["inspect", "nothing"], "build-engine": ["nothing", "--backend", "onnxruntime"]}[script]
    done = subprocess.run([SCRIPTS / script, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"(Bundle|Request)Error: nothing", done.stderr)
    assert "Traceback" not in done.stderr


# Bundles by name


def test_the_cache_is_the_folder_named_or_the_user_s(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LATENTRT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "latentrt"


def test_demo_is_the_bundle_in_home(own_home, capsys):
    Path("demo").mkdir()  # as in this project's own folder; not a bundle
    assert bundle_folder(Path("demo")) == own_home / "demo"
    assert f"BundleError: {own_home / 'demo'}: the demo has no bundle yet" in failed(
        run_main(capsys, "inspect", "demo")
    )
    write_hollow_bundle(own_home / "demo")
    assert run_main(capsys, "inspect", "demo").exit == 0


def test_demo_is_a_bundle_that_lies_here(own_home):
    write_hollow_bundle(Path("demo"))
    assert bundle_folder(Path("demo")) == Path("demo")


@pytest.mark.parametrize("name", ["other", "./demo2", "a/demo", "/abs/demo"])
def test_other_names_are_paths(own_home, name):
    assert bundle_folder(Path(name)) == Path(name)


def test_generate_finds_the_demo(own_home, capsys):
    assert f"{own_home / 'demo'}: the demo has no bundle yet" in failed(run_main(capsys, "generate", "demo", "a cat"))


# inspect


def test_inspect_tells_what_is_in_a_bundle(bundle, capsys):
    run = run_main(capsys, "inspect", bundle.path)
    assert run.exit == 0
    assert len(run.stdout.splitlines()) == 1
    assert run.result["manifest"] == json.loads((bundle.path / "manifest.json").read_text())
    assert run.result["builds"] == {}
    for words in ("native size 1024", "width 512:1024:1536", "noise_pred float16[rows", "vae_images"):
        assert words in run.error


def test_a_unet_is_built_in_two_parts_or_whole(tmp_path, capsys):
    graph_bundles.write_graph_bundle(tmp_path / "b", ("unet",), "fp32")
    arguments = (tmp_path / "b", "--backend", "onnxruntime")
    for options, engines in (((), ["unet_prologue", "unet_body"]), (("--no-hoist",), ["unet"])):
        built = run_main(capsys, *arguments, *options, entry=build_engine)
        assert (built.exit, list(built.result["engines"])) == (0, engines)
        shown = run_main(capsys, "inspect", tmp_path / "b")
        assert list(shown.result["builds"][built.result["build"]]["engines"]) == engines
        assert ("once per request instead of" in " ".join(shown.error.split())) == (len(engines) == 2)


def test_build_engine_for_several_sizes(tmp_path, capsys):
    """Inspect shows the profiles, the options and the kernels; a size beside them is refused."""
    bundle = graph_bundles.write_graph_bundle(tmp_path / "b", ("vae_decoder",))
    profiles = ("--profile", "128x128", "--profile", "96x160", "--guidance", "on")
    built = run_main(capsys, tmp_path / "b", "--backend", "onnxruntime", *profiles, entry=build_engine)
    assert built.exit == 0
    kernels = tmp_path / "b" / "builds" / built.result["build"] / "kernels" / "tensorrt-rtx-1.7-some-gpu.cache"
    kernels.parent.mkdir()
    kernels.write_bytes(b"x" * 2_000_000)
    shown = run_main(capsys, "inspect", bundle.path)
    limits = shown.result["builds"][built.result["build"]]["limits"]
    assert (limits["profiles"], limits["guidance"]) == (["128x128", "96x160"], "on")
    assert shown.result["kernels"] == {built.result["build"]: {kernels.name: 2_000_000}}
    for words in (
        "profile 128x128 96x160, images 1:1:2, tokens 77:77:154, vae_images 1:1:2, guidance on",
        "latent_height 20, latent_width 12",
        "kernels: tensorrt-rtx-1.7-some-gpu.cache, 2.0 MB",
    ):
        assert words in shown.error
    run = run_main(capsys, bundle.path, "--backend", "onnxruntime", *profiles, "--width", "64", entry=build_engine)
    assert failed(run).startswith("RequestError: profiles and width: each says which sizes are served. Give one of")


def test_build_engine_options_of_another_backend(bundle, capsys):
    run = run_main(capsys, bundle.path, "--backend", "onnxruntime", "--tiling", "full", entry=build_engine)
    assert failed(run).startswith("RequestError: --tiling: only tensorrt has such options, onnxruntime has none.")
    run = run_main(capsys, bundle.path, "--backend", "tensorrt", "--optimization-level", "6", entry=build_engine)
    assert failed(run).startswith("RequestError: optimization level 6: must be 0 to 5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tiling", "full"), "RequestError: --tiling: only tensorrt has such options"),
        (("--profile", "64"), "RequestError: profile 64: a profile is WIDTHxHEIGHT"),
        (("--profile", "64x64", "--width", "64"), "RequestError: profiles and width: each says which sizes"),
    ],
)
def test_build_engine_says_before_an_export_what_it_cannot_build(tmp_path, capsys, options, message):
    command = (tmp_path / "checkpoint", "-o", tmp_path / "bundle", "--backend", "onnxruntime", *options)
    assert failed(run_main(capsys, *command, entry=build_engine)).startswith(message)


def test_inspect_shows_builds(tmp_path, capsys):
    graph_bundles.write_graph_bundle(tmp_path / "b", ("vae_decoder",))
    built = run_main(capsys, tmp_path / "b", "--backend", "onnxruntime", entry=build_engine)
    assert built.exit == 0
    assert built.result["bundle"] == str(tmp_path / "b")
    assert list(built.result["engines"]) == ["vae_decoder"]
    assert built.result["engines"]["vae_decoder"]["bytes"] > 0
    run = run_main(capsys, "inspect", tmp_path / "b", "--check")
    assert run.exit == 0
    assert list(run.result["builds"]) == [built.result["build"]]
    assert f"build {built.result['build']}" in run.error


def test_inspect_check_finds_a_changed_file(bundle, capsys):
    file = bundle.path / "onnx" / "fp16" / "unet.onnx"
    file.write_bytes(file.read_bytes()[::-1])
    assert run_main(capsys, "inspect", bundle.path).exit == 0
    assert f"BundleError: {file}: its SHA-256 is not" in failed(run_main(capsys, "inspect", bundle.path, "--check"))


def test_inspect_of_a_damaged_bundle(bundle, capsys):
    os.truncate(bundle.path / "manifest.json", 100)
    assert "manifest.json: not readable as a manifest" in failed(run_main(capsys, "inspect", bundle.path))


# export and build-engine


def test_build_engine_of_what_is_no_bundle(tmp_path, capsys):
    run = run_main(capsys, tmp_path, "--backend", "onnxruntime", entry=build_engine)
    remedy = "to export a checkpoint first, name the new bundle with -o BUNDLE"
    assert failed(run) == f"RequestError: {tmp_path} is not a bundle; {remedy}"


def test_build_engine_of_what_is_neither_bundle_nor_checkpoint(tmp_path, capsys):
    run = run_main(capsys, tmp_path, "--backend", "onnxruntime", "-o", tmp_path / "new", entry=build_engine)
    assert f"CheckpointError: {tmp_path}: not a checkpoint" in failed(run)
    assert not (tmp_path / "new").exists()


def test_build_engine_does_not_write_a_bundle_elsewhere(bundle, tmp_path, capsys):
    other = tmp_path / "other"
    run = run_main(capsys, bundle.path, "--backend", "onnxruntime", "-o", other, entry=build_engine)
    message = f"RequestError: --output {other}: {bundle.path} is a bundle already, and its engines go into it"
    assert failed(run) == message
    assert not other.exists()


def test_build_engine_may_name_the_bundle_itself(tmp_path, capsys):
    graph_bundles.write_graph_bundle(tmp_path / "b", ("vae_decoder",))
    options = ("--backend", "onnxruntime", "--width", "64:64:128", "-o", tmp_path / "b")
    run = run_main(capsys, "build-engine", tmp_path / "b", *options)
    assert run.exit == 0
    (build,) = run_main(capsys, "inspect", tmp_path / "b").result["builds"].values()
    assert build["limits"]["width"] == "64:64:128"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--width", "512:wide", "width 512:wide: a range is written min:opt:max, min:max or one number"),
        ("--height", "500", "height 500:500:500: every bound must be a multiple of 8"),
        ("--tokens", "100", "tokens 100:100:100: every bound must be a multiple of 77"),
        ("--images", "0:1:2", "images 0:1:2: a range is min:opt:max with 1 <= min <= opt <= max"),
        ("--vae-images", "2", "vae_images 2:2:2: must begin at 1, for the last slice of a request"),
    ],
)
def test_ranges_that_cannot_be(bundle, capsys, option, value, message):
    run = run_main(capsys, bundle.path, "--backend", "onnxruntime", option, value, entry=build_engine)
    assert failed(run) == f"RequestError: {message}"


def test_a_backend_that_is_not_installed(bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    run = run_main(capsys, bundle.path, "--backend", "tensorrt-rtx", entry=build_engine)
    assert "BackendError: backend tensorrt-rtx: tensorrt_rtx cannot be imported" in failed(run)
    assert "pip install 'latentrt[tensorrt-rtx]'" in run.error


def test_export_without_torch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "latentrt.export.checkpoint", None)
    error = failed(run_main(capsys, "export", tmp_path, "-o", tmp_path / "new"))
    assert error.startswith("BackendError: exporting needs torch and diffusers, which are not installed (")
    assert error.endswith("Install them with: pip install 'latentrt[export]'")


def test_export_without_onnxruntime(tmp_path, capsys, monkeypatch):
    """No extra but `cpu` and `cuda` brings it: the user chooses."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = failed(run_main(capsys, "export", tmp_path, "-o", tmp_path / "new"))
    assert error.startswith("BackendError: exporting compares with torch in ONNX Runtime, which is not installed.")
    assert error.endswith("pip install 'latentrt[cpu]', or 'latentrt[cuda]' where pictures are drawn on an NVIDIA GPU")


def test_export_of_what_is_no_checkpoint(tmp_path, capsys):
    error = failed(run_main(capsys, "export", tmp_path / "nothing", "-o", tmp_path / "new"))
    assert error.startswith(f"CheckpointError: {tmp_path / 'nothing'}: no such file or folder")
    assert not (tmp_path / "new").exists()


# generate


def test_generate_with_a_bad_request(bundle, capsys, monkeypatch):
    monkeypatch.setattr(
        "latentrt.runtime.backends.onnxruntime.OnnxRuntimeBackend.load", lambda *arguments, **options: Closable()
    )
    run = run_main(capsys, "generate", bundle.path, "a cat", "--width", "1600", "--backend", "onnxruntime")
    command = f"build-engine {bundle.path} --backend onnxruntime --width 512:1024:1600"
    assert "no build for this machine" in run.error
    assert f"RequestError: width 1600: this build serves 512 to 1536 in steps of 8. Rebuild with: {command}" in failed(
        run
    )


def test_generate_with_loras_needs_room(bundle, capsys, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "peft", LINEAR, rank=6)
    run = run_main(capsys, "generate", bundle.path, "a cat", "--lora", f"{file}:0.7")
    assert "no build for this machine has room for LoRAs of rank 6; it has none. Build one with: " in failed(run)
    assert run.error.endswith(f"build-engine {bundle.path} --backend onnxruntime --lora-rank 6")
    run = run_main(capsys, "generate", bundle.path, "a cat", "--lora", file, "--lora", f"{file}:2")
    assert "have one name, by which LoRAs are told apart. Name each file once, or rename one" in failed(run)


@pytest.mark.parametrize("rank", ["-1", "1025"])
def test_room_for_loras_has_bounds(bundle, capsys, rank):
    run = run_main(capsys, "build-engine", bundle.path, "--backend", "onnxruntime", "--lora-rank", rank)
    assert f"--lora-rank {rank}: must be from 1 to 1024, or 0 for no room" in failed(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "RequestError: --prompts-file prompts.txt: not readable as text"),
        (b"\xff", "not readable as text ('utf-8' codec can't decode"),
        (b" \n\n", "RequestError: --prompts-file prompts.txt: no line holds a prompt"),
    ],
)
def test_generate_with_a_prompts_file_that_holds_none(own_home, capsys, content, message):
    if content is not None:
        Path("prompts.txt").write_bytes(content)
    assert message in failed(run_main(capsys, "generate", "x", "--prompts-file", "prompts.txt"))


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_generate_with_a_picture_that_is_none(bundle, capsys, option):
    manifest = bundle.path / "manifest.json"
    other = {"--image": (), "--mask": ("--image", manifest)}[option]
    run = run_main(capsys, "generate", bundle.path, "a cat", option, manifest, *other)
    assert f"RequestError: {manifest}: not readable as a picture (cannot identify image file" in failed(run)


class Closable:
    """An engine that never runs."""

    def close(self):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "picture.gif",
            "the suffix says how a picture is written, and must be one of .png, .jpg, .jpeg, .webp, ",
        ),
        ("picture", ".avif; name it picture.png"),
        ("a" * 300 + ".png", "cannot be written (File name too long)"),
        ("loop.png", "cannot be written (Too many levels of symbolic links)"),
        ("file/out.png", "cannot be made (File exists)"),
    ],
)
def test_a_bad_output_is_refused_before_anything_is_loaded(tmp_path, capsys, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop.png").symlink_to("loop.png")
    run = run_main(capsys, "generate", tmp_path / "no-bundle", "a cat", "-o", tmp_path / name)
    assert message in failed(run)
    assert "no-bundle" not in run.error


def test_the_version(capsys):
    run = run_main(capsys, "--version")
    assert run.stdout == f"latentrt {version('latentrt')}\n"


def test_what_is_no_bundle_is_named(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text("{}")
    assert f"a checkpoint, not a bundle. Export it with: latentrt export {tmp_path}" in failed(
        run_main(capsys, "inspect", tmp_path)
    )
    file = tmp_path / "out.png"
    file.write_bytes(b"")
    assert f"{file}: a file, not the folder of a bundle" in failed(run_main(capsys, "inspect", file))


def test_a_refiner_that_is_not_there_is_said_before_anything_is_loaded(own_home, bundle, capsys):
    run = run_main(capsys, "generate", bundle.path, "a cat", "--refiner", "demo")
    assert failed(run) == f"BundleError: {own_home / 'demo'}: the demo has no bundle yet. Make it with: latentrt demo"
    assert [*Path().iterdir()] == []


def test_a_prompt_is_asked_for_on_a_terminal(own_home, bundle, capsys, monkeypatch):
    """Here the answer is the end of the input."""
    monkeypatch.setattr("latentrt.cli.generate._on_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    run = run_main(capsys, "generate", bundle.path)
    assert (run.exit, run.stdout) == (2, "")
    assert run.error.startswith("What to draw: ")
    assert "Missing argument 'PROMPT'" in run.error
    assert "not a bundle" in failed(run_main(capsys, "generate", "nothing"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "{colour}.png"), "{colour} in {colour}.png: it may hold {n}, {seed}"),
        (("-o", "-", "--images", "2"), "- takes one picture, not 2"),
        (("--quality", "0"), "'--quality'"),
    ],
)
def test_outputs_that_are_wrong_usage(own_home, capsys, options, message):
    run = run_main(capsys, "generate", "x", "a cat", *options)
    assert (run.exit, run.stdout) == (2, "")
    assert message in re.sub(r"[│\s]+", " ", run.stderr)


def test_the_input_is_never_overwritten(own_home, capsys):
    Path("photo.png").write_bytes(b"mine")
    for option in ("--image", "--from-png"):
        run = run_main(capsys, "generate", "x", "a cat", option, "photo.png", "-o", "photo.png", "--force")
        assert failed(run) == (
            "RequestError: photo.png: it is read for this picture, and is never overwritten. Name another file"
        )
    assert Path("photo.png").read_bytes() == b"mine"


def test_prompts_come_from_stdin(own_home, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert failed(run_main(capsys, "generate", "x", "--prompts-file", "-")) == (
        "RequestError: --prompts-file -: no line holds a prompt"
    )


def test_a_working_folder_that_is_gone(bundle, tmp_path):
    (tmp_path / "gone").mkdir()
    code = (
        "import os, sys; os.rmdir(os.getcwd()); from latentrt.cli.main import main; "
        f"sys.argv = ['latentrt', 'generate', {str(bundle.path)!r}, 'a cat', '-o', 'a.png']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "RequestError: a.png: cannot be written (No such file or directory)\n"
