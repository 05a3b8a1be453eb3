"""Old configs: what diffusers' pipelines repair as they load them, latentrt repairs, and nothing else."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from diffusers import DDIMScheduler, DiffusionPipeline
from json_files import edit_json

from latentrt.export.checkpoint import Checkpoint
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler

PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
}
DDIM = PNDM | {"_class_name": "DDIMScheduler"}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "no steps_offset": PNDM | {"skip_prk_steps": True},
    "another steps_offset": PNDM | {"skip_prk_steps": True, "steps_offset": 0},
    "no skip_prk_steps": PNDM | {"steps_offset": 1},
    "skip_prk_steps false": PNDM | {"steps_offset": 1, "skip_prk_steps": False},
    "ddim without clip_sample": DDIM | {"steps_offset": 1},
    "ddim that clips": DDIM | {"steps_offset": 1, "clip_sample": True},
    "ddim of now": DDIM | {"steps_offset": 1, "clip_sample": False},
    "euler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
}
READ = ("steps_offset", "skip_prk_steps", "clip_sample", "set_alpha_to_one")
PIPELINES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionImg2ImgPipeline": "sd15",
    "StableDiffusionInpaintPipeline": "sd15-inpaint",
    "LatentConsistencyModelPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
}


def write(folder: Path, pipeline: str, scheduler: dict[str, Any]) -> Path:
    write_checkpoint(folder, PIPELINES[pipeline])
    (folder / "scheduler" / "scheduler_config.json").unlink()
    edit = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler["_class_name"]]}
    edit_json(folder / "model_index.json", lambda index: index.update(edit))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def peer(folder: Path) -> Any:
    """diffusers' pipeline of the class that the index names."""
    more = (
        {}
        if "XL" in (folder / "model_index.json").read_text()
        else dict.fromkeys(("safety_checker", "feature_extractor"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says what it repairs
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **more)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_those_of_the_pipeline(tmp_path: Path, pipeline: str, name: str) -> None:
    folder = write(tmp_path / "checkpoint", pipeline, SCHEDULERS[name])
    theirs = peer(folder).scheduler
    if getattr(theirs.config, "clip_sample", False) and isinstance(theirs, DDIMScheduler):
        with pytest.raises(CheckpointError, match=r"scheduler_config.json: sampler 'ddim': clip_sample is True"):
            Checkpoint.open(folder)
        return
    ours = Checkpoint.open(folder).model.scheduler
    for field in READ:
        if field in theirs.config and field in ours:
            assert ours[field] == theirs.config[field], field
    schedule = ScheduleConfig.from_diffusers(ours)
    theirs.set_timesteps(7)
    plan = compile_sampler(
        {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim"}.get(type(theirs).__name__, "euler"), schedule, 7
    )
    assert plan.timesteps[:-1].tolist() == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("pipeline", "version", "size", "wanted"),
    [
        ("StableDiffusionPipeline", "0.6.0", 32, 64),
        ("StableDiffusionInpaintPipeline", "0.8.1", 32, 64),
        ("StableDiffusionPipeline", "0.6.0", 96, 96),
        ("StableDiffusionPipeline", "0.6.0", [32, 32], 32),
        ("StableDiffusionPipeline", "0.9.0.dev0", 32, 32),
        ("StableDiffusionPipeline", None, 32, 32),
        ("LatentConsistencyModelPipeline", "0.6.0", 32, 32),
        ("StableDiffusionXLPipeline", "0.6.0", 32, 32),
    ],
)
def test_sizes_are_those_of_the_pipeline(
    tmp_path: Path, pipeline: str, version: str | None, size: Any, wanted: int
) -> None:
    folder = write(tmp_path / "checkpoint", pipeline, SCHEDULERS["euler"] | {"steps_offset": 1})
    edit_json(
        folder / "unet" / "config.json", lambda config: config.update(sample_size=size, _diffusers_version=version)
    )
    if version is None:
        edit_json(folder / "unet" / "config.json", lambda config: config.pop("_diffusers_version"))
    model = Checkpoint.open(folder).model
    theirs = peer(folder).unet.config.sample_size
    assert (
        model.native_size // model.latent_scale
        == wanted
        == (theirs[0] if isinstance(theirs, (list, tuple)) else theirs)
    )


def test_a_version_that_is_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", "StableDiffusionPipeline", SCHEDULERS["euler"])
    edit_json(folder / "unet" / "config.json", lambda config: config.update(_diffusers_version="new"))
    with pytest.raises(CheckpointError, match="_diffusers_version is 'new', which is no version"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_another_sampler_does_not_clip_where_the_config_says_nothing(
    tmp_path: Path, pipeline: str, sampler: str
) -> None:
    folder = write(tmp_path / "checkpoint", pipeline, SCHEDULERS["euler"])
    schedule = ScheduleConfig.from_diffusers(Checkpoint.open(folder).model.scheduler)
    assert compile_sampler(sampler, schedule, 4).weights.shape[0] == 5
