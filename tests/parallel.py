"""How a run is spread over the cores: one process per core, each with that core to itself."""

import gc
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

MOST_WORKERS = 8
"""More than these would only wait for each other's exports, and take 1 GB each."""

HEAVY_FIRST = ("packaging", "parity", "integration", "unit", "gpu")
"""Whatever is left at the end is small, so no process waits long for the last one."""

BUNDLES = {"sdxl_bundle_fp16": ("sdxl", "fp16"), "demo_bundle": ("demo", "fp32"), "sdxl_bundle": ("sdxl", "fp32")}
"""Fixture -> family and precision of the shared bundle that it gives; the one that takes longest comes first."""


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


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and tests that live to the end: it need not walk them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _exports_first(request: pytest.FixtureRequest, shared_folder: Path) -> None:
    """Where processes share a run, each exports other bundles first, so that few tests wait for one."""
    if "PYTEST_XDIST_WORKER" in os.environ and (wanted := wanted_bundles(request.session.items)):
        from exports import export_in_turns

        export_in_turns(shared_folder, wanted)


def wanted_bundles(items: Iterable[pytest.Item]) -> list[tuple[str, str]]:
    """Family and precision of the shared bundles that tests need, the one that takes longest first.

    Which families the fixture `family` will be asked for is seen in the parameters: their names, or what has one.
    """
    wanted = [(item, set(getattr(item, "fixturenames", ()))) for item in items]
    fixtures = {name for _, names in wanted for name in names}
    bundles = {bundle: None for fixture, bundle in BUNDLES.items() if fixture in fixtures}
    if "family" in fixtures:
        from families import FAMILIES

        for item, names in wanted:
            values = item.callspec.params.values() if "family" in names and hasattr(item, "callspec") else ()
            asked = [getattr(value, "family", value) for value in values]
            bundles |= {(name, "fp32"): None for name in asked if name in FAMILIES}
    return list(bundles)
