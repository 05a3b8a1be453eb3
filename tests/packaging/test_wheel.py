"""The wheel holds every module of the source folders, the data that belongs to them, and nothing else."""

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
"""Every folder of the source tree that is a package."""

DATA = (
    "demo/checkpoint/**/*",
    "export/sources/configs/*.json",
    "benchmarks/configs/**/*",
    "benchmarks/report/style.css",
    "*/py.typed",
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist")


def source_files() -> set[str]:
    """The wheel's files as the source folders make them: `latentrt/runtime/errors.py`, ..."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found += [path for pattern in DATA for path in ROOT.glob(pattern) if path.is_file()]
    return {f"latentrt/{path.relative_to(ROOT).as_posix()}" for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing in the source tree changes and no earlier build shows."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=IGNORED)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel, name):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [found for found in archive.namelist() if found.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_it_is_for_every_platform(wheel):
    assert wheel.name == f"latentrt-{PROJECT['project']['version']}-py3-none-any.whl"


def test_every_package_folder_is_mapped():
    assert {"runtime", "engine", "export", "cli", "serve", "demo", "benchmarks"} <= set(FOLDERS)
    assert "tests" not in FOLDERS
    assert {"latentrt.engine.passes", "latentrt.runtime.samplers"} <= set(PROJECT["tool"]["setuptools"]["packages"])
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"latentrt.{folder}": folder for folder in FOLDERS}


def test_the_exact_files(names):
    content = {name for name in names if ".dist-info/" not in name}
    assert sorted(source_files() - content) == [], "missing from the wheel"
    assert sorted(content - source_files()) == [], "should not be in the wheel"


def test_what_must_be_there_is_there(names):
    """Not derived from the source tree, lest both be empty."""
    wanted = [f"latentrt/{folder}/py.typed" for folder in ("runtime", "engine", "export", "cli", "demo", "benchmarks")]
    wanted += ["runtime/backends/onnxruntime.py", "runtime/samplers/solvers/euler.py"]
    wanted += ["cli/main.py", "export/exporter.py", "serve/scheduler.py", "serve/http/openai.py"]
    wanted += ["demo/checkpoint/model_index.json", "demo/checkpoint/unet/config.json", "engine/build.py"]
    wanted += ["engine/passes/hoist.py"]
    wanted += ["demo/checkpoint/tokenizer/vocab.json", "demo/checkpoint/tokenizer_2/merges.txt"]
    wanted += ["export/sources/single_file.py", "export/sources/configs/sdxl.json"]
    wanted += ["benchmarks/suite.py", "benchmarks/workers/serve.py", "benchmarks/report/style.css"]
    wanted += ["benchmarks/configs/sdxl-50m/unet/config.json", "benchmarks/configs/sdxl-base/tokenizer_2/merges.txt"]
    assert [name for name in wanted if f"latentrt/{name.removeprefix('latentrt/')}" not in names] == []


def test_nothing_stands_outside_the_namespace(names):
    assert {name.split("/")[0].split("-")[0] for name in names} == {"latentrt"}
    assert "latentrt/__init__.py" not in names


def test_dist_info(names, wheel):
    info = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    required = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert info == required
    assert "Apache License" in read(wheel, "licenses/LICENSE")


def test_entry_points(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(read(wheel, "entry_points.txt"))
    assert parser.sections() == ["console_scripts"]
    assert dict(parser["console_scripts"]) == {
        "latentrt": "latentrt.cli.main:main",
        "build-engine": "latentrt.cli.main:build_engine",
    }


def test_metadata(wheel):
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"cpu", "cuda", "tensorrt", "tensorrt-rtx", "export", "serve", "bench", "test", "dev"}
    assert extras <= set(metadata.get_all("Provides-Extra"))
    assert "# latentrt" in metadata.get_payload()


def test_every_requirement_has_an_upper_bound(wheel):
    requirements = Parser().parsestr(read(wheel, "METADATA")).get_all("Requires-Dist")
    others = [text for text in requirements if not text.startswith("latentrt")]
    assert len(others) > 10
    assert [text for text in others if "<" not in text] == []


def test_the_unpacked_wheel_works(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import latentrt.runtime, latentrt.cli.main, latentrt.engine.build, latentrt.demo\n"
        "print(latentrt.cli.main.__file__, (latentrt.demo.CHECKPOINT / 'model_index.json').is_file())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path}/latentrt/cli/main.py True\n", "")
