"""The schedule that the published SDXL checkpoints state."""

from latentrt.runtime.samplers import ScheduleConfig

SDXL = ScheduleConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="leading",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
    skip_prk_steps=True,
)
