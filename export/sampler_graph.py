"""The sampler as an ONNX graph: one step of any linear sampler, written once, the same for every model and backend.

For image b at step s = step[b], with state Z (history, latent elements):

    model output  m = guidance[b] · noise_pred                     rows -> one output per image
    next state    Z' = W[b, s] · [Z; m; noise[b, min(s, noises - 1)]]
    next input    x = C[b, s + 1] · Z',  repeated for every row of the image, in the U-Net's dtype

A sum over Z' that is not finite marks the image as failed at this step, for the host to read once per request.
All arithmetic is float32. Each image has its own step and tables, so images at different steps share one batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from latentrt.export.trace import OPSET
from latentrt.runtime.specs import ComponentSpec, Port

BODY = """
{
  minus_one = Constant<value_ints = [-1]>()
  one = Constant<value_ints = [1]>()
  one_step = Constant<value_int = 1>()
  images = Shape<start = 0, end = 1>(state)
  history = Shape<start = 1, end = 2>(state)
  latent = Shape<start = 2>(state)
  rows = Shape<start = 0, end = 1>(noise_pred)
  noises = Shape<start = 1, end = 2>(noise)
  latent_per_image = Concat<axis = 0>(images, latent)
  flat_rows = Concat<axis = 0>(rows, minus_one)
  flat_one = Concat<axis = 0>(images, one, minus_one)
  flat_history = Concat<axis = 0>(images, history, minus_one)

  predictions = Cast<to = 1>(noise_pred)
  prediction_rows = Reshape(predictions, flat_rows)
  guided = MatMul(guidance, prediction_rows)
  output = Reshape(guided, flat_one)

  last_noise = Sub(noises, one)
  noise_index = Min(step, last_noise)
  noise_at = Unsqueeze(noise_index, one)
  step_noise = GatherND<batch_dims = 1>(noise, noise_at)
  fresh_noise = Reshape(step_noise, flat_one)

  flat_state = Reshape(state, flat_history)
  everything = Concat<axis = 1>(flat_state, output, fresh_noise)
  step_at = Unsqueeze(step, one)
  step_weights = GatherND<batch_dims = 1>(weights, step_at)
  flat_next = MatMul(step_weights, everything)
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
  image_input = Reshape(flat_input, latent_per_image)
  row_input = Gather<axis = 0>(image_input, row_image)
  sample = Cast<to = UNET_DTYPE>(row_input)
  image_timestep = GatherND<batch_dims = 1>(timesteps, next_at)
  timestep = Gather<axis = 0>(image_timestep, row_image)
}
"""

TEXT_DTYPES = {"float16": "float16", "float32": "float", "bfloat16": "bfloat16", "int64": "int64"}


def sampler_graph(spec: ComponentSpec) -> ir.Model:
    """The graph for a sampler spec, whose `sample` has the U-Net's dtype."""
    sample = next(port for port in spec.outputs if port.name == "sample")
    dtype = ir.DataType[{"float32": "FLOAT"}.get(sample.dtype, sample.dtype.upper())]
    signature = f"sampler ({_declare(spec.inputs)}) => ({_declare(spec.outputs)})"
    header = f'<ir_version: 11, opset_import: ["": {OPSET}]>\n'
    return ir.from_onnx_text(header + signature + BODY.replace("UNET_DTYPE", str(dtype.value)))


def sampler_reference(inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """The same step in numpy, straight from the equations: next_state, next_step, next_failed, sample, timestep."""
    images = np.arange(len(inputs["step"]))
    step, rows = inputs["step"], inputs["row_image"]
    output = np.einsum("bn,nchw->bchw", inputs["guidance"], inputs["noise_pred"])
    fresh = inputs["noise"][images, np.minimum(step, inputs["noise"].shape[1] - 1)]
    everything = np.concatenate([inputs["state"], output[:, None], fresh[:, None]], axis=1)
    state = np.einsum("bij,bjchw->bichw", inputs["weights"][images, step], everything)
    following = np.einsum("bi,bichw->bchw", inputs["readout"][images, step + 1], state)
    keeps = np.isfinite(state.sum(axis=(1, 2, 3, 4))) | (inputs["failed"] >= 0)
    failed = np.where(keeps, inputs["failed"], step)
    return state, step + 1, failed, following[rows], inputs["timesteps"][images, step + 1][rows]


def _declare(ports: tuple[Port, ...]) -> str:
    """Ports as ONNX text; axes are only numbered here and get their names from the spec when the file is written."""
    return ", ".join(
        f"{TEXT_DTYPES[port.dtype]}[{', '.join(_axis(str(axis)) for axis in port.axes)}] {port.name}" for port in ports
    )


def _axis(text: str) -> str:
    return text.replace("+", "_plus_")
