"""The compiled form of a sampler: one small matrix per step."""

from dataclasses import dataclass

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.plan import Flags


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """A sampler for S U-Net evaluations of one schedule, as numbers.

    With Z the k state tensors, for step s:

        U-Net input = readout[s] · Z          Z' = weights[s] · [Z; model output; noise]

    Z starts as [latents, 0, ..., 0]. Text to image starts from initial_scale * standard normal noise, image to image
    from signal * original + noise rate * standard normal noise with (signal, noise rate) = original_levels[0].
    original_levels[s] are the same two rates for the original that inpainting puts back before step s; the last row,
    after the last step, is (1, 0), the original itself.

    Row S stands after the last step: its weights keep Z, its readout gives the finished latents, and its timestep is
    the last one again. Row 0 is row `first` of the whole schedule, which has `whole` rows; `first` is above 0 where a
    loop starts late.

    Shapes, float64: weights (S + 1, k, k + 2), readout (S + 1, k), timesteps (S + 1,), original_levels (S + 1, 2);
    bool: draws (S,), true for the steps that take one standard normal draw of the latents' shape, even where its weight
    is zero.
    """

    sampler: str
    initial_scale: float
    weights: Float64s
    readout: Float64s
    timesteps: Float64s
    draws: Flags
    original_levels: Float64s
    first: int
    whole: int

    @property
    def state_count(self) -> int:
        """k, the number of state tensors."""
        return int(self.weights.shape[1])

    @property
    def step_count(self) -> int:
        """S, the number of U-Net evaluations."""
        return len(self.draws)
