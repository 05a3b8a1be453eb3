"""The sampler as an ONNX graph: one step of any linear sampler, written once, the same for every model and backend.

For image b at step s = step[b], with state Z (history, latent elements):

    guided        g = guidance[b] · noise_pred                     rows -> one prediction per image
    model output  m = g (1 + rescale[b] (std(noise_pred[text_row[b]]) / std(g) - 1))
    next state    Z' = W[b, s] · [Z; m; noise[b, draws[b, s]]]
    kept outside  Z'[0] = mask[b] Z'[0] + (1 - mask[b]) (L[b, s, 0] original[b] + L[b, s, 1] original_noise[b])
    next input    x = C[b, s + 1] · Z',  repeated for every row of the image, in the U-Net's dtype

Rescaling is Lin et al. 2024 (arXiv:2305.08891), equations 15 and 16. The mask is 1 where the picture is drawn;
elsewhere the latents follow the original at each step's noise level. A U-Net with more input channels than latents
gets `extra` behind them. A sum over Z' that is not finite marks the image as failed at this step; the host reads the
mark once per request. All arithmetic is float32. Each image has its own step and tables, so images at different steps
share a batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from latentrt.export.trace import OPSET
from latentrt.runtime.bundle.specs import ONNX_TYPES, ComponentSpec, Port

BODY = """
{
  minus_one = Constant<value_ints = [-1]>()
  one = Constant<value_ints = [1]>()
  one_step = Constant<value_int = 1>()
  images = Shape<start = 0, end = 1>(state)
  history = Shape<start = 1, end = 2>(state)
  latent = Shape<start = 2>(state)
  rows = Shape<start = 0, end = 1>(noise_pred)
  latent_per_image = Concat<axis = 0>(images, latent)
  flat_rows = Concat<axis = 0>(rows, minus_one)
  flat_one = Concat<axis = 0>(images, one, minus_one)
  flat_history = Concat<axis = 0>(images, history, minus_one)
  step_at = Unsqueeze(step, one)

  predictions = Cast<to = 1>(noise_pred)
  prediction_rows = Reshape(predictions, flat_rows)
  guided = MatMul(guidance, prediction_rows)

  text_rows = Gather<axis = 0>(prediction_rows, text_row)
  text_mean = ReduceMean(text_rows, one)
  text_centred = Sub(text_rows, text_mean)
  text_square = Mul(text_centred, text_centred)
  text_variance = ReduceMean(text_square, one)
  guided_mean = ReduceMean(guided, one)
  guided_centred = Sub(guided, guided_mean)
  guided_square = Mul(guided_centred, guided_centred)
  guided_variance = ReduceMean(guided_square, one)
  smallest = Constant<value_float = 1e-20>()
  divisor = Max(guided_variance, smallest)
  variance_ratio = Div(text_variance, divisor)
  ratio = Sqrt(variance_ratio)
  unit = Constant<value_float = 1.0>()
  excess = Sub(ratio, unit)
  rescale_column = Unsqueeze(rescale, one)
  correction = Mul(rescale_column, excess)
  factor = Add(correction, unit)
  rescaled = Mul(guided, factor)
  output = Reshape(rescaled, flat_one)

  draw = GatherND<batch_dims = 1>(draws, step_at)
  draw_at = Unsqueeze(draw, one)
  step_noise = GatherND<batch_dims = 1>(noise, draw_at)
  fresh_noise = Reshape(step_noise, flat_one)

  flat_state = Reshape(state, flat_history)
  everything = Concat<axis = 1>(flat_state, output, fresh_noise)
  step_weights = GatherND<batch_dims = 1>(weights, step_at)
  flat_drawn = MatMul(step_weights, everything)

  zero_axis = Constant<value_ints = [0]>()
  all_after = Constant<value_ints = [9223372036854775807]>()
  flat_latents = Slice(flat_drawn, zero_axis, one, one)
  flat_memory = Slice(flat_drawn, one, all_after, one)
  drawn_latents = Reshape(flat_latents, latent_per_image)
  step_levels = GatherND<batch_dims = 1>(levels, step_at)
  to_latent = Constant<value_ints = [2, 3]>()
  both_levels = Unsqueeze(step_levels, to_latent)
  signal_level, noise_level = Split<axis = 1, num_outputs = 2>(both_levels)
  original_signal = Mul(signal_level, original)
  noise_of_original = Mul(noise_level, original_noise)
  kept = Add(original_signal, noise_of_original)
  outside = Sub(unit, mask)
  drawn_part = Mul(mask, drawn_latents)
  kept_part = Mul(outside, kept)
  blended = Add(drawn_part, kept_part)
  flat_blended = Reshape(blended, flat_one)
  flat_next = Concat<axis = 1>(flat_blended, flat_memory)
  state_shape = Shape(state)
  next_state = Reshape(flat_next, state_shape)

  state_axes = Constant<value_ints = [1, 2]>()
  total = ReduceSum<keepdims = 0>(flat_next, state_axes)
  magnitude = Abs(total)
  largest = Constant<value_float = 3.4e38>()
  is_finite = LessOrEqual(magnitude, largest)
  none = Constant<value_int = 0>()
  has_failed = GreaterOrEqual(failed, none)
  keeps = Or(is_finite, has_failed)
  next_failed = Where(keeps, failed, step)

  next_step = Add(step, one_step)
  next_at = Unsqueeze(next_step, one)
  next_readout = GatherND<batch_dims = 1>(readout, next_at)
  readout_row = Unsqueeze(next_readout, one)
  flat_input = MatMul(readout_row, flat_next)
  image_latents = Reshape(flat_input, latent_per_image)
  image_input = EXTENDED
  row_input = Gather<axis = 0>(image_input, row_image)
  sample = Cast<to = UNET_DTYPE>(row_input)
  image_timestep = GatherND<batch_dims = 1>(timesteps, next_at)
  timestep = Gather<axis = 0>(image_timestep, row_image)
}
"""


def sampler_graph(spec: ComponentSpec) -> ir.Model:
    """Build the graph for a sampler's spec, whose `sample` has the U-Net's dtype and channels."""
    sample = next(port for port in spec.outputs if port.name == "sample")
    has_extra = any(port.name == "extra" for port in spec.inputs)
    extended = "Concat<axis = 1>(image_latents, extra)" if has_extra else "Identity(image_latents)"
    signature = f"sampler ({_declare(spec.inputs)}) => ({_declare(spec.outputs)})"
    header = f'<ir_version: 11, opset_import: ["": {OPSET}]>\n'
    body = BODY.replace("UNET_DTYPE", str(ONNX_TYPES[sample.dtype])).replace("EXTENDED", extended)
    return ir.from_onnx_text(header + signature + body)


def sampler_reference(inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Compute the same step in numpy, straight from the equations.

    Returns next_state, next_step, next_failed, sample and timestep.
    """
    images = np.arange(len(inputs["step"]))
    step, rows, predictions = inputs["step"], inputs["row_image"], inputs["noise_pred"]
    guided = np.einsum("bn,nchw->bchw", inputs["guidance"], predictions)
    spread = predictions[inputs["text_row"]].std(axis=(1, 2, 3)) / guided.std(axis=(1, 2, 3))
    output = guided * _per_image(1 + inputs["rescale"] * (spread - 1))
    fresh = inputs["noise"][images, inputs["draws"][images, step]]
    everything = np.concatenate([inputs["state"], output[:, None], fresh[:, None]], axis=1)
    state = np.einsum("bij,bjchw->bichw", inputs["weights"][images, step], everything)
    signal, noise = (_per_image(level) for level in inputs["levels"][images, step].T)
    kept = signal * inputs["original"] + noise * inputs["original_noise"]
    state[:, 0] = inputs["mask"] * state[:, 0] + (1 - inputs["mask"]) * kept
    keeps = np.isfinite(state.sum(axis=(1, 2, 3, 4))) | (inputs["failed"] >= 0)
    failed = np.where(keeps, inputs["failed"], step)
    following = np.einsum("bi,bichw->bchw", inputs["readout"][images, step + 1], state)
    if "extra" in inputs:
        following = np.concatenate([following, inputs["extra"]], axis=1)
    return state, step + 1, failed, following[rows], inputs["timesteps"][images, step + 1][rows]


def _per_image(values: NDArray[Any]) -> NDArray[Any]:
    """(images,) -> (images, 1, 1, 1)."""
    return values[:, None, None, None]


def _declare(ports: tuple[Port, ...]) -> str:
    """Write ports as ONNX text; `trace.declare_ports` names the axes anew, for this syntax allows no `steps+1`."""
    return ", ".join(
        f"{_text_type(port)}[{', '.join(map(str, port.axes))}] {port.name}".replace("+", "_plus_") for port in ports
    )


def _text_type(port: Port) -> str:
    """The dtype as ONNX's text syntax names it: float for float32."""
    return ir.DataType(ONNX_TYPES[port.dtype]).name.lower()
