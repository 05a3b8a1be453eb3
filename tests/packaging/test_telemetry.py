"""ONNX Runtime writes no identifier into the user's cache and sends nothing, unless the user asks for it."""

import os
import subprocess
import sys

import pytest

IMPORTS = {
    "runtime": "from latentrt.runtime.backends.registry import load_module; load_module('onnxruntime')",
    "export": "import latentrt.export.session",
    "benchmarks": "import latentrt.benchmarks.graph_passes",
}


def written(statement, home, **variables):
    """What a fresh interpreter leaves in an empty home folder."""
    known = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment = {**known, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **variables}
    subprocess.run([sys.executable, "-B", "-c", statement], env=environment, check=True, capture_output=True)
    return sorted(path.name for path in home.rglob("*") if "icrosoft" in str(path) and path.is_file())


@pytest.mark.parametrize("package", [*IMPORTS])
def test_no_identifier_is_written(package, tmp_path):
    if package != "runtime":
        pytest.importorskip("torch")
    assert written(IMPORTS[package], tmp_path) == []


def test_the_user_may_decide_otherwise(tmp_path):
    """Also shows that the test above would find what is written."""
    assert "deviceid" in written(IMPORTS["runtime"], tmp_path, ORT_DISABLE_TELEMETRY="0")
