"""The benchmark suite: latentrt and its peers, side by side in one run.

    scenarios    the frozen list: which model, at which sizes, by which contenders
    contenders   who takes part: ours in every form, and the peers
    models       checkpoints and bundles, made on the spot and kept in latentrt's home
    workers/     one process per contender, and what runs inside it
    process      the other end of a worker's pipes
    harness      interleaved rounds over warm workers
    suite        runs scenarios, one result line after the other
    flops, peaks, roofline    the work in the graphs, what the machine can do, the floor that follows
    builds, host_work    two scenarios of another kind: engine builds, and Python's own share of a step
    results      what a run writes, line by line
    summary, difference    medians and ratios; how far two pictures are apart
    environment  the machine, the driver, every version, the commit
    report/      charts, one HTML page, Markdown tables

`vae_fp16.py` stands alone: the full-size VAE in fp16. `configs/` holds full-size models without weights.
"""

from pathlib import Path

__all__ = ["CONFIGS"]

CONFIGS = Path(__file__).parent / "configs"
"""Models without weights: folders in diffusers format."""
