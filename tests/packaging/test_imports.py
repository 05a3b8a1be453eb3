"""What each package can be imported and used without, each time in a fresh interpreter."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import latentrt.runtime

ROOT = Path(__file__).parents[2]

TORCH = ("torch", "diffusers", "transformers", "accelerate", "onnxscript", "onnx_ir")
ENGINES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_lean", "polygraphy", "cuda")
ALL = (*TORCH, "onnx", *ENGINES)
WEB = ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart")


def run_blocked(blocked, code, **options):
    """Run code in a fresh interpreter in which nobody imports the blocked modules."""
    command = [sys.executable, str(Path(__file__).with_name("blocked.py")), ",".join(blocked), code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def modules(package):
    """Every module of a package folder: `latentrt.runtime.samplers.solvers.euler`, ..."""
    files = sorted((ROOT / package).rglob("*.py"))
    dotted = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [f"latentrt.{name.removesuffix('.__init__')}" for name in dotted]


def test_the_block_blocks():
    done = run_blocked(["json"], "import latentrt.runtime")
    assert done.returncode != 0
    assert "No module named 'json'" in done.stderr


def test_importing_the_runtime_loads_neither_torch_nor_onnx():
    code = f"import latentrt.runtime, sys; print([name for name in {ALL!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("runtime", (*ALL, "typer", "rich")),
        ("engine", (*(name for name in TORCH if name != "onnx_ir"), *ENGINES, "typer", "rich")),
        ("cli", (*ALL, *WEB)),
        ("serve", (*ALL, "typer", "rich")),
        ("export", (*(name for name in ENGINES if name != "onnxruntime"), "typer", "rich")),
    ],
)
def test_every_module_imports_without(package, blocked):
    names = modules(package)
    assert names
    code = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint('imported all')"
    done = run_blocked(blocked, code)
    assert (done.stdout, done.stderr) == ("imported all\n", "")


def test_reading_and_judging_scenes_needs_no_torch():
    names = ["latentrt.demo", *(f"latentrt.demo.{name}" for name in ("captions", "scenes", "score", "shapes", "sheet"))]
    code = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint('imported all')"
    done = run_blocked((*ALL, "typer", "rich"), code)
    assert (done.stdout, done.stderr) == ("imported all\n", "")


def test_a_peers_worker_needs_nothing_of_latentrts_own_environment():
    """It may run beside older libraries: what it imports at the start is the standard library and numpy."""
    names = [
        f"latentrt.benchmarks.workers.{name}" for name in ("serve", "measure", "torch_pipeline", "optimum_pipeline")
    ]
    code = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint('imported all')"
    done = run_blocked((*ALL, "typer", "rich", "pydantic", "tokenizers", "matplotlib"), code)
    assert (done.stdout, done.stderr) == ("imported all\n", "")


def command_line(*arguments):
    return f"import sys; from latentrt.cli.main import main; sys.argv = ['latentrt', *{arguments!r}]; main()"


@pytest.mark.parametrize(
    "command", [(), ("export",), ("build-engine",), ("generate",), ("serve",), ("demo",), ("bench",)]
)
def test_help_needs_no_extra(command):
    done = run_blocked((*ALL, *WEB), command_line(*command, "--help"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_doctor_needs_no_extra(tmp_path):
    done = run_blocked(ALL, command_line("doctor"), env={"PATH": str(tmp_path)})
    assert done.returncode in (0, 1)  # packages of this environment may be out of range
    findings = {found["name"]: found for found in json.loads(done.stdout.splitlines()[-1])["findings"]}
    for backend, extra in (("onnxruntime", "cpu"), ("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")):
        found = findings[f"backend {backend}"]
        assert (found["status"], found["remedy"]) == ("absent", f"pip install 'latentrt[{extra}]'")


@pytest.mark.parametrize(
    ("blocked", "arguments", "message"),
    [
        (("torch",), ("export", "x", "-o", "y"), "BackendError: exporting needs torch and diffusers"),
        (("diffusers",), ("export", "x", "-o", "y"), "pip install 'latentrt[export]'"),
        (TORCH, ("demo",), "BackendError: exporting needs torch and diffusers"),
        (TORCH, ("bench", "--quick"), "BackendError: exporting needs torch and diffusers"),
        (("matplotlib",), ("bench", "--quick"), "pip install 'latentrt[bench]'"),
        (
            WEB,
            ("serve", "{bundle}"),
            "BackendError: serving needs fastapi, uvicorn, prometheus_client, python_multipart",
        ),
        (("uvicorn",), ("serve", "{bundle}"), "pip install 'latentrt[serve]'"),
        (ALL, ("generate", "{bundle}", "a cat"), "BackendError: no backend is installed"),
        (("onnxruntime",), ("build-engine", "{bundle}", "--backend", "onnxruntime"), "pip install 'latentrt[cpu]'"),
        (
            ("onnx",),
            ("build-engine", "{bundle}", "--backend", "onnxruntime"),
            "BackendError: building engines needs onnx, which is not installed",
        ),
    ],
)
def test_what_is_not_installed_is_named(tmp_path, blocked, arguments, message):
    from hollow_bundles import write_hollow_bundle

    bundle = write_hollow_bundle(tmp_path / "bundle").path
    done = run_blocked(blocked, command_line(*(word.format(bundle=bundle) for word in arguments)), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_picture_is_drawn_without_torch(sdxl_bundle, tmp_path):
    options = ("--steps", "2", "--seed", "7", "--backend", "onnxruntime", "-o", str(tmp_path / "o.png"))
    without = tuple(name for name in ALL if name != "onnxruntime")
    done = run_blocked(without, command_line("generate", str(sdxl_bundle), "a red circle", *options))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["files"] == [str(tmp_path / "o.png")]
    assert (tmp_path / "o.png").read_bytes()[:4] == b"\x89PNG"


def test_the_runtime_exports_what_a_program_needs():
    names = latentrt.runtime.__all__
    assert names == sorted(names)
    assert {"Drawing", "Embeddings", "Ensemble", "Pipeline", "Request", "Result", "Settings"} <= set(names)
    assert latentrt.runtime.__version__ == metadata.version("latentrt")
    # These are raised by benchmarks, export and engine alone.
    assert not {"BenchmarkError", "ParityError", "PrecisionError"} & set(names)
    assert all(hasattr(latentrt.runtime, name) for name in names)
