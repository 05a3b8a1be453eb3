"""How a run is spread over the cores: one process per core, each with that core to itself."""

import os
from pathlib import Path

import pytest

MOST_WORKERS = 8
"""More than these would only wait for each other's exports, and take 1 GB each."""

HEAVY_FIRST = ("packaging", "parity", "integration", "unit", "gpu")
"""Whatever is left at the end is small, so no process waits long for the last one."""


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _stay_on_one_core() -> None:
    """Give this process one of the cores that the run may use, before a library counts them and starts its threads.

    Tiny networks are computed faster by one thread than by two that share their cores with another test's.
    """
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        cores = _cores()
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


_stay_on_one_core()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Where nobody says how many processes: one per core for folders, one alone for single files and tests.

    A hook rather than `addopts`, with which `-p no:xdist` would fail.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if option.numprocesses is None and not option.collectonly and all(Path(name).is_dir() for name in config.args):
        # xdist's "auto" counts physical cores where psutil is installed, also those that this process may not use.
        option.numprocesses = min(len(_cores()), MOST_WORKERS)
    if option.numprocesses and option.dist == "no":
        option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order folders as in `HEAVY_FIRST`."""
    folders = [*HEAVY_FIRST]
    items.sort(key=lambda item: folders.index(name) if (name := item.path.parent.name) in folders else len(folders))
