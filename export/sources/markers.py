"""Markers in single files: keys that are no weights, and say how the model was trained."""

from typing import Any

from latentrt.export.sources.weight_file import WeightFile
from latentrt.runtime.errors import CheckpointError

MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Every marker that is read, named as ComfyUI does (comfy/supported_models.py)."""

PLAYGROUND_SCHEDULER = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}
"""Scheduler of Playground v2.5, the model with `edm_mean` and `edm_std`, as diffusers' single-file loader makes it."""

PLAYGROUND_SCALING_FACTOR = 0.5

COSXL_SCHEDULER = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}
"""Scheduler of CosXL, the model with `edm_vpred.sigma_max`; the file's own sigmas replace these."""


def schedule_of(file: WeightFile) -> dict[str, Any]:
    """Fields that the markers give the scheduler's config; a whole config where the model is of EDM's kind.

    Raises:
        CheckpointError: a marker holds something else than a number.
    """
    if "edm_mean" in file.shapes:
        return dict(PLAYGROUND_SCHEDULER)
    sigmas = [key for key in ("edm_vpred.sigma_max", "edm_vpred.sigma_min") if key in file.shapes]
    if "edm_vpred.sigma_max" in sigmas:
        return COSXL_SCHEDULER | {key.partition(".")[2]: _numbers(file, key, 1)[0] for key in sigmas}
    # Zero SNR at the last timestep is of use only where sampling begins there (Lin et al. 2023, 3.3).
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in file.shapes else {}


def latents_of(file: WeightFile, channels: int) -> dict[str, Any]:
    """Fields that the markers give the VAE's config.

    Raises:
        CheckpointError: there is a mean without a deviation, or they are not one number per channel.
    """
    given = [key for key in ("edm_mean", "edm_std") if key in file.shapes]
    if not given:
        return {}
    if len(given) < 2:
        raise CheckpointError(f"{file.path}: holds {given[0]} alone; edm_mean and edm_std go together")
    mean, std = (_numbers(file, key, channels) for key in given)
    return {"latents_mean": mean, "latents_std": std, "scaling_factor": PLAYGROUND_SCALING_FACTOR}


def _numbers(file: WeightFile, key: str, count: int) -> list[float]:
    ((_, tensor),) = file.tensors([key])
    numbers = tensor.double().flatten()
    if len(numbers) != count or not numbers.isfinite().all():
        raise CheckpointError(f"{file.path}: {key} must hold {count} finite numbers, it holds {numbers.tolist()[:8]}")
    return [float(number) for number in numbers]
