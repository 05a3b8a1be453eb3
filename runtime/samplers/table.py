"""The compiled form of a sampler: one small matrix per step."""

from dataclasses import dataclass

from latentrt.runtime.samplers.plan import Flags, Floats


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """A sampler for one schedule of S U-Net evaluations, as numbers.

    With Z the k state tensors, for step s:

        U-Net input = readout[s] · Z          Z' = weights[s] · [Z; model output; noise]

    Z starts as [initial_scale * standard normal noise, 0, ..., 0]; its slot 0 is the latents. Row S stands after the
    last step: weights keep Z, readout gives the finished latents, and the timestep is the last one again.

    Shapes, float64: weights (S + 1, k, k + 2), readout (S + 1, k), timesteps (S + 1,); bool: draws (S,), true for the
    steps that take one standard normal draw of the latents' shape, even where its weight is zero.
    """

    sampler: str
    initial_scale: float
    weights: Floats
    readout: Floats
    timesteps: Floats
    draws: Flags

    @property
    def state_count(self) -> int:
        """k, the number of state tensors."""
        return int(self.weights.shape[1])

    @property
    def step_count(self) -> int:
        """S, the number of U-Net evaluations."""
        return len(self.draws)

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return bool(self.draws.any())
