"""The table of components: every input and output of every component, for any model.

Dims, with g = 1 or 2 guidance branches:

    images          images of one request
    vae_images      images that the VAE takes at once
    rows            rows of the U-Net's batch, images * g
    texts           rows of a text encoder's batch: distinct prompts * chunks of 77 tokens
    tokens          77 * chunks
    latent_height   height / 8, or another factor if the VAE has one; latent_width likewise
    steps           U-Net evaluations in the sampler's table
    history         state tensors of the sampler, the latents first; at least 2, unused ones stay zero
    noises          noise tensors per image: one per step that draws, or 1 where the sampler draws none
"""

from collections.abc import Iterable, Mapping

from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import (
    DTYPES,
    TOKENS_PER_CHUNK,
    ComponentSpec,
    Dim,
    Dims,
    DType,
    Port,
    Precision,
    port,
)
from latentrt.runtime.errors import RequestError

MAX_STEPS = 1000
MAX_NOISES = 256
"""Fewer than the steps, as all of them lie on the device and TensorRT counts a tensor's elements in 31 bits."""

MAX_HISTORY = 8


def request_dims(limits: Limits, model: Model) -> dict[str, Dim]:
    """The range of every dim for a range of requests."""
    images, width, height, tokens = (limits.bounds(name) for name in ("images", "width", "height", "tokens"))
    fewest, most = guidance_branches(limits, model)
    chunks = [bound // TOKENS_PER_CHUNK for bound in tokens]
    scale = model.latent_scale
    bounds = {
        "images": images,
        "vae_images": limits.bounds("vae_images"),
        "rows": (fewest * images[0], most * images[1], most * images[2]),
        "texts": (1, 2 * chunks[1], 2 * images[2] * chunks[2]),
        "tokens": tokens,
        "latent_height": tuple(bound // scale for bound in height),
        "latent_width": tuple(bound // scale for bound in width),
        "steps": (1, 30, MAX_STEPS),
        "history": (2, 2, MAX_HISTORY),
        "noises": (1, 1, MAX_NOISES),
    }
    return {name: Dim(name, *three) for name, three in bounds.items()}


def guidance_branches(limits: Limits, model: Model) -> tuple[int, int]:
    """The fewest and the most rows that the U-Net runs per image.

    Raises:
        RequestError: the limits ask for guided requests alone, and this model's guidance takes no rows.
    """
    if model.guidance_embedding and limits.guidance == "on":
        raise RequestError("guidance on: this model takes the guidance scale as an input, and never runs negative rows")
    return {"any": (1, 2), "on": (2, 2), "off": (1, 1)}[limits.guidance]


def request_profiles(limits: Limits, model: Model) -> list[Dims]:
    """The ranges of every dim in each optimisation profile: one for each size profile and number of rows.

    Where the number of images is fixed, batches without guidance have a profile of their own, whose rows are a single
    number. So are those of guided batches of one image; of several images, some may be at a step without guidance.
    """
    dims = request_dims(limits, model)
    scale = model.latent_scale
    sizes = [
        {
            "latent_height": _scaled("latent_height", profile.height, scale),
            "latent_width": _scaled("latent_width", profile.width, scale),
        }
        for profile in limits.profiles
    ]
    rows, images = dims["rows"], dims["images"]
    batches = [{"rows": rows}]
    if images.is_static and not rows.is_static:
        unguided, guided = (rows.min, rows.min, rows.min), (rows.min + 1, rows.max, rows.max)
        batches = [{"rows": Dim("rows", *bounds)} for bounds in (guided, unguided)]
    return [{**dims, **size, **batch} for size in sizes or [{}] for batch in batches]


def _scaled(name: str, pixels: Dim, scale: int) -> Dim:
    return Dim(name, pixels.min // scale, pixels.opt // scale, pixels.max // scale)


def component_specs(
    model: Model, limits: Limits, precisions: Mapping[str, Precision], names: Iterable[str] | None = None
) -> dict[str, ComponentSpec]:
    """Every component of a model, or those in `names`, with ports and dims.

    `precisions` holds each component's precision; the sampler has the U-Net's, and one profile for all sizes, as its
    few small operations gain nothing from more.
    """
    dims, profiles = request_dims(limits, model), tuple(request_profiles(limits, model))
    specs: dict[str, ComponentSpec] = {}

    def add(name: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        specs[name] = ComponentSpec(name, inputs, outputs, dims, () if name == "sampler" else profiles)

    for encoder in model.text_encoders:
        dtype = DTYPES[precisions[encoder.component]]
        hidden = port("hidden", dtype, "texts", TOKENS_PER_CHUNK, encoder.width)
        pooled = (port("pooled", dtype, "texts", encoder.pooled),) if encoder.pooled else ()
        inputs = (port("input_ids", "int64", "texts", TOKENS_PER_CHUNK), port("clip_skip", "int64", "texts"))
        add(encoder.component, inputs, (hidden, *pooled))
    add("unet", *_unet(model, DTYPES[precisions["unet"]]))
    add("vae_decoder", *_vae_decoder(model, DTYPES[precisions["vae_decoder"]]))
    add("vae_encoder", *_vae_encoder(model, DTYPES[precisions["vae_encoder"]]))
    add("sampler", *_sampler(model, DTYPES[precisions["unet"]]))
    return specs if names is None else {name: specs[name] for name in names}


Ports = tuple[tuple[Port, ...], tuple[Port, ...]]


def _unet(model: Model, dtype: DType) -> Ports:
    latents = ("rows", model.unet_channels, "latent_height", "latent_width")
    inputs = [
        port("sample", dtype, *latents),
        port("timestep", "float32", "rows"),
        port("encoder_hidden_states", dtype, "rows", "tokens", model.context_width),
    ]
    if model.time_ids:
        inputs += [
            port("text_embeds", dtype, "rows", model.pooled_width),
            port("time_ids", "float32", "rows", len(model.time_ids)),
        ]
    if model.guidance_embedding:
        inputs.append(port("timestep_cond", "float32", "rows", model.guidance_embedding))
    return tuple(inputs), (port("noise_pred", dtype, "rows", model.latent_channels, *latents[2:]),)


def _vae_decoder(model: Model, dtype: DType) -> Ports:
    """`magnitude` is each image's mean absolute value before clamping, which is not finite if any pixel is not."""
    scale = model.latent_scale
    return (
        (port("latent", dtype, "vae_images", model.latent_channels, "latent_height", "latent_width"),),
        (
            port("image", "uint8", "vae_images", f"{scale}*latent_height", f"{scale}*latent_width", 3),
            port("magnitude", "float32", "vae_images"),
        ),
    )


def _vae_encoder(model: Model, dtype: DType) -> Ports:
    scale = model.latent_scale
    latent = ("vae_images", model.latent_channels, "latent_height", "latent_width")
    return (
        (port("image", dtype, "vae_images", 3, f"{scale}*latent_height", f"{scale}*latent_width"),),
        (port("mean", dtype, *latent), port("logvar", dtype, *latent)),
    )


def _sampler(model: Model, dtype: DType) -> Ports:
    """One step of any sampler: Z' = W[step] · [Z; guidance · noise_pred; noise], unet input = C[step + 1] · Z'.

    The equations are in `latentrt.export.sampler_graph`. `failed` is the first step after which an image's Z held NaN
    or infinity, or -1; `extra` holds the channels that an inpainting U-Net takes besides the latents.
    """
    latent = (model.latent_channels, "latent_height", "latent_width")
    state = ("images", "history", *latent)
    more = model.unet_channels - model.latent_channels
    extra = (port("extra", "float32", "images", more, *latent[1:]),) if more else ()
    return (
        (
            port("noise_pred", dtype, "rows", *latent),
            port("state", "float32", *state),
            port("step", "int64", "images"),
            port("failed", "int64", "images"),
            port("weights", "float32", "images", "steps+1", "history", "history+2"),
            port("readout", "float32", "images", "steps+1", "history"),
            port("timesteps", "float32", "images", "steps+1"),
            port("guidance", "float32", "images", "rows"),
            port("rescale", "float32", "images"),
            port("text_row", "int64", "images"),
            port("row_image", "int64", "rows"),
            port("draws", "int64", "images", "steps+1"),
            port("noise", "float32", "images", "noises", *latent),
            port("mask", "float32", "images", 1, *latent[1:]),
            port("levels", "float32", "images", "steps+1", 2),
            port("original", "float32", "images", *latent),
            port("original_noise", "float32", "images", *latent),
            *extra,
        ),
        (
            port("next_state", "float32", *state),
            port("next_step", "int64", "images"),
            port("next_failed", "int64", "images"),
            port("sample", dtype, "rows", model.unet_channels, *latent[1:]),
            port("timestep", "float32", "rows"),
        ),
    )
