"""ONNX Runtime uses the cores that the process may use, not those that the machine has."""

import json
import os
import subprocess
import sys

import pytest
from graph_bundles import write_graph_bundle

from latentrt.runtime.backends.onnxruntime import usable_cores

SCRIPT = """
import json, os, sys
# The processes of a test run have one core each; this one asks for all that the machine gives.
os.sched_setaffinity(0, range(os.cpu_count()))
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[:1] if sys.argv[2] == "one" else cores)
from latentrt.runtime.backends import open_backend
from latentrt.runtime.bundle import Bundle
bundle = Bundle.open(sys.argv[1])
engine = open_backend("onnxruntime", "cpu").load(bundle.manifest.specs(bundle.manifest.limits)["vae_decoder"],
                                                 bundle.onnx("vae_decoder"))
options = engine.session.get_session_options()
spinning = options.get_session_config_entry("session.force_spinning_stop")
print(json.dumps([len(cores), options.intra_op_num_threads, spinning]))
"""


def test_the_cores_of_this_process():
    assert 1 <= usable_cores() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs two cores to give one up")
@pytest.mark.parametrize("cores", ["one", "all"])
def test_sessions_have_as_many_threads(tmp_path, cores):
    """0 leaves the choice to ONNX Runtime, which is right where every core is usable. None spins after a run."""
    bundle = write_graph_bundle(tmp_path / "bundle", precision="fp32").path
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle), cores], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    allowed, threads, spinning = json.loads(done.stdout)
    all_of_them = 0 if allowed == os.cpu_count() else allowed
    assert (threads, spinning) == (1 if cores == "one" else all_of_them, "1")
