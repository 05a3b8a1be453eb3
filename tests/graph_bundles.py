"""Bundles of hand-written graphs, a few nodes per component, that build in a second."""

from pathlib import Path

import numpy as np
import onnx

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import MANIFEST, describe_file, write_record
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LAYER_KEY
from latentrt.runtime.bundle.manifest import ComponentRecord, Defaults, Manifest, Provenance, port_table
from latentrt.runtime.bundle.model import Model, TextEncoder
from latentrt.runtime.bundle.specs import Precision

MODEL = Model(
    family="sdxl",
    text_encoders=(
        TextEncoder(component="text_encoder", tokenizer="tokenizer", width=16, layers=2, skipped=1, final_norm=False),
    ),
    unet_channels=4,
    latent_channels=4,
    latent_scale=8,
    scaling_factor=0.13,
    native_size=128,
    zero_negative=True,
    scheduler={},
)
LIMITS = Limits(images="1:1:2", width="64:128:192", height="64:128:192", tokens="77:77:154", vae_images="1:1:2")

HEADER = '<ir_version: 11, opset_import: ["" : 23]>'

# F stands for the dtype of the precision; weights are random constants named in upper case with their shapes.
GRAPHS = {
    "text_encoder": """text_encoder (int64[texts,77] input_ids, int64[texts] clip_skip) => (F[texts,77,16] hidden)
        <F[100,16] EMBEDDING, F[16,16] WEIGHT>
        { words = Gather(EMBEDDING, input_ids)
          product = MatMul(words, WEIGHT)
          column = Constant<value_ints=[-1,1,1]>()
          skip = Cast<to=TYPE>(clip_skip)
          skip3 = Reshape(skip, column)
          hidden = Add(product, skip3) }""",
    "unet": """unet (F[rows,4,h,w] sample, float[rows] timestep, F[rows,tokens,16] encoder_hidden_states)
          => (F[rows,4,h,w] noise_pred)
        <F[8] SCALE, F[8] BIAS, F[8,4,3,3] CONV_IN, F[4,8,3,3] CONV_OUT, F[16,8] TO_KEY>
        { c = Conv<pads=[1,1,1,1]>(sample, CONV_IN)
          n = GroupNormalization<num_groups=2, epsilon=0.00001>(c, SCALE, BIAS)
          shape = Shape(n)
          flat = Constant<value_ints=[0,8,-1]>()
          n3 = Reshape(n, flat)
          query = Transpose<perm=[0,2,1]>(n3)
          key = MatMul(encoder_hidden_states, TO_KEY)
          a = Attention<q_num_heads=2, kv_num_heads=2>(query, key, key)
          at = Transpose<perm=[0,2,1]>(a)
          a4 = Reshape(at, shape)
          column = Constant<value_ints=[-1,1,1,1]>()
          t = Cast<to=TYPE>(timestep)
          t4 = Reshape(t, column)
          sum = Add(a4, t4)
          noise_pred = Conv<pads=[1,1,1,1]>(sum, CONV_OUT) }""",
    "vae_decoder": """vae_decoder (F[images,4,h,w] latent)
          => (uint8[images,height,width,3] image, float[images] magnitude)
        <F[192,4,3,3] CONV>
        { c = Conv<pads=[1,1,1,1]>(latent, CONV)
          pixels = DepthToSpace<blocksize=8>(c)
          wide = Cast<to=1>(pixels)
          size = Abs(wide)
          axes = Constant<value_ints=[1,2,3]>()
          magnitude = ReduceMean<keepdims=0>(size, axes)
          zero = Constant<value_float=0.0>()
          full = Constant<value_float=255.0>()
          scaled = Mul(wide, full)
          clamped = Clip(scaled, zero, full)
          rounded = Round(clamped)
          last = Transpose<perm=[0,2,3,1]>(rounded)
          image = Cast<to=2>(last) }""",
    "vae_encoder": """vae_encoder (F[images,3,height,width] image) => (F[images,4,h,w] mean, F[images,4,h,w] logvar)
        <F[4,192,1,1] MEAN, F[4,192,1,1] LOGVAR>
        { d = SpaceToDepth<blocksize=8>(image)
          mean = Conv(d, MEAN)
          logvar = Conv(d, LOGVAR) }""",
}
FLOAT32_ENCODER = """vae_encoder (F[images,3,height,width] image) => (F[images,4,h,w] mean, F[images,4,h,w] logvar)
        <float[4,192,1,1] MEAN>
        { d = SpaceToDepth<blocksize=8>(image)
          wide = Cast<to=1>(d)
          sum = Conv(wide, MEAN)
          mean = Cast<to=TYPE>(sum)
          logvar = Identity(mean) }"""
"""An encoder whose only convolution runs in float32, whatever the precision."""

ENGINES = ["text_encoder", "unet_prologue", "unet_body", "vae_decoder", "vae_encoder"]
"""What is built of them."""

ONNX_NAMES = {"fp16": "float16", "fp32": "float", "bf16": "bfloat16"}


LAYERS = {
    "product": "encoder.layers.0.self_attn.q_proj",
    "key": "down_blocks.0.attentions.0.attn2.to_k",
    "c": "conv_in",
    "noise_pred": "conv_out",
}
"""Output of a node -> the name of its layer, which an export records; the decoder's convolution gets one, too."""


def write_onnx(file: Path, text: str, precision: Precision) -> None:
    """Write a graph of `GRAPHS`, its weights drawn from a seed."""
    dtype = ONNX_NAMES[precision]
    number = getattr(onnx.TensorProto, dtype.upper())
    model = onnx.parser.parse_model(HEADER + text.replace("F[", f"{dtype}[").replace("TYPE", str(number)))
    draw = np.random.default_rng(0).standard_normal
    weights = [value for value in model.graph.value_info if value.name.isupper()]
    for value in weights:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        values = (draw(shape) / 4).astype("f4").ravel()
        model.graph.initializer.append(onnx.helper.make_tensor(value.name, kind.elem_type, shape, values))
        model.graph.value_info.remove(value)
    for node in model.graph.node:
        if node.output[0] in LAYERS:
            node.metadata_props.add(key=LAYER_KEY, value=LAYERS[node.output[0]])
    onnx.checker.check_model(model, full_check=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def write_graph_bundle(
    folder: Path,
    names: tuple[str, ...] = tuple(GRAPHS),
    precision: Precision = "fp16",
    graphs: dict[str, str] | None = None,
    written: Precision | None = None,
) -> Bundle:
    """A bundle of these components. `graphs` replaces some; `written` is the dtype that really stands in them."""
    specs = component_specs(MODEL, LIMITS, dict.fromkeys(GRAPHS, precision), names)
    components, files = {}, {}
    for name in names:
        path = f"onnx/{precision}/{name}.onnx"
        write_onnx(folder / path, {**GRAPHS, **(graphs or {})}[name], written or precision)
        files[path] = describe_file(folder / path)
        components[name] = ComponentRecord(
            precision=precision,
            files=(path,),
            inputs=port_table(specs[name].inputs),
            outputs=port_table(specs[name].outputs),
            parameters=0,
            nodes=0,
        )
    manifest = Manifest(
        latentrt="0",
        precision=precision,
        model=MODEL,
        limits=LIMITS,
        defaults=Defaults(sampler="euler", steps=4, guidance=1.0),
        components=components,
        provenance=Provenance(checkpoint="none", weights="random", weights_sha256="", created="", versions={}),
        files=files,
    )
    write_record(folder / MANIFEST, manifest)
    return Bundle.open(folder)
