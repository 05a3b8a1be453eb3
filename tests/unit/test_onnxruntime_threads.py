"""ONNX Runtime uses the cores that the process may use, not those that the machine has."""

import json
import os
import subprocess
import sys

import pytest
from engine_bundles import write_bundle

from latentrt.runtime.backends.onnxruntime import usable_cores

SCRIPT = """
import json, os, sys
from latentrt.runtime.backends import open_backend
from latentrt.runtime.bundle import Bundle
if sys.argv[2] == "one":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
bundle = Bundle.open(sys.argv[1])
engine = open_backend("onnxruntime", "cpu").load(bundle.manifest.specs(bundle.manifest.limits)["vae_decoder"],
                                                 bundle.onnx("vae_decoder"))
options = engine.session.get_session_options()
print(json.dumps([options.intra_op_num_threads, options.get_session_config_entry("session.force_spinning_stop")]))
"""


def test_the_cores_of_this_process():
    assert 1 <= usable_cores() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or usable_cores() < 2, reason="needs two cores to give one up")
@pytest.mark.parametrize(
    ("cores", "threads"), [("one", 1), ("all", 0 if usable_cores() == os.cpu_count() else usable_cores())]
)
def test_sessions_have_as_many_threads(tmp_path, cores, threads):
    """0 leaves the choice to ONNX Runtime, which is right where every core is usable. None spins after a run."""
    bundle = write_bundle(tmp_path / "bundle", precision="fp32").path
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle), cores], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [threads, "1"]
