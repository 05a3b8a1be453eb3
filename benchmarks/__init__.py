"""The benchmark suite: latentrt and its peers, side by side in one run.

    scenarios    the list: which model, at which sizes, by which contenders
    contenders   who takes part: latentrt in every form, and the peers
    peers        environments of peers whose libraries conflict with latentrt's
    models       checkpoints and bundles, generated when needed and kept in latentrt's cache folder
    suite        runs scenarios and writes their results
    context      options of a run, and the workers of a scenario
    pictures, builds, host_work    the kinds of scenario: requests or one component; engine builds; the host's own work
    harness      interleaved rounds over warm workers
    process      starts and calls a worker process
    workers/     what runs in the worker processes
    flops, roofline    the work in the graphs, and the least time that it takes on this machine
    results      the records that a run writes, one JSON line each
    summary, difference    medians and ratios; the difference of two pictures
    environment  the machine, the driver, every version, the commit
    report/      charts, one HTML page, Markdown tables

`vae_fp16.py`, `compile_settings.py`, `graph_passes.py` and `engine_sizes.py` are scripts of their own. `configs/` holds
models without weights.
"""

import os
from pathlib import Path

__all__ = ["CONFIGS"]

# Before anything here imports ONNX Runtime; `latentrt.runtime`, which says the same, cannot be imported by the workers
# of peers that have an environment of their own.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

CONFIGS = Path(__file__).parent / "configs"
"""Models without weights: folders in diffusers format."""
