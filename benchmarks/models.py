"""The models of the benchmarks: checkpoints and their bundles, created when needed and kept in the cache folder."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from latentrt import engine, export, runtime
from latentrt.benchmarks import CONFIGS
from latentrt.benchmarks.scenarios import SIZES, SUITES, Scenario
from latentrt.demo import CHECKPOINT
from latentrt.runtime.bundle.atomic_files import MANIFEST, link_or_copy, replacing_folder
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.cache import cache_folder, locked
from latentrt.runtime.errors import BenchmarkError

SEED = 0
"""Seed of the random weights."""

HASH_DIGITS = 12
"""Digits of a hash in the name of a folder."""

INDEX = "model_index.json"
TEXT_PREFIX = "text_model."


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """A model: its folder in diffusers format, whether that includes weights, and whether it is the user's own."""

    name: str
    folder: Path
    has_weights: bool
    is_own: bool = False


def find_model(name: str) -> BenchmarkModel:
    """Find a model by name: `demo`, a folder of `configs/`, or the path of a checkpoint in diffusers format.

    Raises:
        BenchmarkError: there is no such model.
    """
    if name == "demo":
        return BenchmarkModel(name, CHECKPOINT, True)
    path = Path(name)
    if path.is_absolute() and (path / INDEX).is_file():
        return BenchmarkModel(path.name, path, True, is_own=True)
    folder = CONFIGS / name
    if not (folder / INDEX).is_file():
        known = sorted(path.parent.name for path in CONFIGS.glob(f"*/{INDEX}"))
        raise BenchmarkError(
            f"model {name}: unknown. The models are demo, {', '.join(known)}, or the folder of a checkpoint"
        )
    return BenchmarkModel(name, folder, False)


def benchmark_home() -> Path:
    """The folder for checkpoints, bundles and peers' environments."""
    return cache_folder() / "bench"


def write_checkpoint(name: str) -> Path:
    """The checkpoint that every contender reads: a user's own in its place, any other written once.

    Random weights are stored in half precision, so that every contender, in any precision, starts from the same values.
    """
    model = find_model(name)
    if model.is_own:
        return model.folder
    key = _digest([model.folder], f"seed {SEED}", Path(__file__).read_text(encoding="utf-8"))
    target = benchmark_home() / f"{name}-{key}" / "checkpoint"
    with locked(target.parent / ".lock", f"{target} is being made", wait=True):
        if not (target / INDEX).is_file():
            with replacing_folder(target) as draft:
                shutil.copytree(model.folder, draft, dirs_exist_ok=True)
                if not model.has_weights:
                    _write_weights(draft)
                publish_names(draft)
    return target


def _write_weights(folder: Path) -> None:
    """Write random weights for every network in a folder of configs."""
    import torch

    from latentrt.export.random_weights import random_network

    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for part, entry in index.items():
        config = folder / part / "config.json"
        if isinstance(entry, list) and config.is_file():
            library, kind = entry
            values = json.loads(config.read_text(encoding="utf-8"))
            network = random_network(getattr(import_module(library), kind), values, torch.float16, SEED)
            network.save_pretrained(folder / part)  # type: ignore[operator]
            del network


def publish_names(folder: Path) -> None:
    """Give the text encoders' tensors the names that published checkpoints have.

    transformers 5 writes them without `text_model.`. Older versions, which peers need, would find none of them and use
    random weights instead.
    """
    from safetensors.torch import load_file, save_file

    for file in sorted(folder.glob("text_encoder*/model.safetensors")):
        tensors = load_file(file)
        if not any(name.startswith(TEXT_PREFIX) for name in tensors):
            save_file({TEXT_PREFIX + name: tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def request_limits(scenario: Scenario) -> dict[str, str]:
    """The limits of a scenario's bundle: the same for all scenarios of a model, so that one export serves them all."""
    known = [one for suite in SUITES.values() for one in suite if one.model == scenario.model]
    sizes = {name: [size for one in (scenario, *known) for size in one.point_sizes()[name]] for name in SIZES}
    usual = Limits.around(_native_size(find_model(scenario.model).folder))
    width, height = (_widened(usual.bounds(name), sizes[name]) for name in ("width", "height"))
    images = _widened((1, 1, 8), sizes["images"])
    return {"width": width, "height": height, "images": images, "tokens": str(TOKENS_PER_CHUNK), "vae_images": "1"}


def static_limits(scenario: Scenario) -> dict[str, str]:
    """The limits that allow the sizes of a scenario's only point, with its guidance or without, and nothing else.

    Raises:
        BenchmarkError: the scenario has points of different sizes, or with and without guidance.
    """
    guided = {point.guidance > 1 for point in scenario.points}
    if len(guided) > 1 or any(len(set(values)) > 1 for values in scenario.point_sizes().values()):
        raise BenchmarkError(
            f"{scenario.name}: engines for one size cannot serve its points. Use contenders for ranges"
        )
    sizes = {name: str(values[0]) for name, values in scenario.point_sizes().items()}
    guidance = "on" if scenario.points[0].guidance > 1 else "off"
    return sizes | {"tokens": str(TOKENS_PER_CHUNK), "vae_images": "1", "guidance": guidance}


def static_copy(bundle: Path, limits: Mapping[str, str]) -> Path:
    """A bundle that shares its files with `bundle`, for builds with other limits."""
    target = bundle.with_name(f"{bundle.name}-{_digest([], json.dumps(dict(limits)))}")
    if not (target / MANIFEST).is_file():
        with replacing_folder(target) as draft:
            shutil.copytree(
                bundle, draft, dirs_exist_ok=True, copy_function=link_or_copy, ignore=shutil.ignore_patterns("builds")
            )
    return target


def _widened(bounds: tuple[int, int, int], values: Sequence[int]) -> str:
    low, opt, high = bounds
    return f"{min(low, *values)}:{opt}:{max(high, *values)}"


def _native_size(folder: Path) -> int:
    unet, vae = (json.loads((folder / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
    return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))


def export_model(name: str, precision: str, limits: Mapping[str, str]) -> Path:
    """The model's bundle for these limits, exported if it does not exist."""
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.exporter import export_bundle

    target = bundle_folder(name, precision, limits)
    with locked(target.with_suffix(".lock"), f"{target} is being made", wait=True):
        if not (target / MANIFEST).is_file():
            checkpoint = Checkpoint.open(write_checkpoint(name))
            # The suite itself compares pictures with those of diffusers.
            export_bundle(checkpoint, target, precision=precision, limits=Limits(**limits), depth="off")  # type: ignore[arg-type]
    return target


def bundle_folder(name: str, precision: str, limits: Mapping[str, str]) -> Path:
    """The folder of a model's bundle: one for each combination of weights, precision, limits and latentrt's code."""
    from latentrt.export.checkpoint import Checkpoint

    weights = Checkpoint.open(write_checkpoint(name)).weights_sha256()
    code = [Path(next(iter(package.__path__))) for package in (runtime, export, engine)]
    key = _digest(code, weights, precision, json.dumps(dict(limits)), version("latentrt"))
    return benchmark_home() / f"{find_model(name).name}-{precision}-{key}"


def _digest(folders: list[Path], *texts: str) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix in (".py", ".json", ".txt", ".safetensors"):
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:HASH_DIGITS]
