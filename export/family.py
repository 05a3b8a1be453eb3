"""What a checkpoint is: the facts its config files state, and what of it latentrt serves.

Families differ in data alone: which text encoders there are, which of their layers the U-Net reads, which inputs it
takes. Only what no config file says is looked up by the pipeline's class (`PIPELINES`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.export.sources.vae import VAE_CLASSES, latent_scale
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.bundle.model import Model, TextEncoder, TimeId
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.samplers import sampler_for

if TYPE_CHECKING:
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.sources.source import Config

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Folder of each network, the library its class lives in and the class itself, as model_index.json names them. A VAE
may also be an AutoencoderTiny."""

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@dataclass(frozen=True, slots=True)
class Conventions:
    """What diffusers' pipelines of one kind do without a word in any config file.

    The U-Net reads the text encoders without their last `skipped` layers, through the final norm or not.
    `zero_negative` and `guidance` are the pipeline's defaults. `addition_embed_type` is what it asks of the U-Net.
    """

    addition_embed_type: str | None
    skipped: int
    final_norm: bool
    zero_negative: bool
    guidance: float


SD = Conventions(addition_embed_type=None, skipped=0, final_norm=True, zero_negative=False, guidance=7.5)
SDXL = Conventions(addition_embed_type="text_time", skipped=1, final_norm=False, zero_negative=True, guidance=5.0)

PIPELINES: Mapping[str, Conventions] = {
    "StableDiffusionPipeline": SD,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "LatentConsistencyModelPipeline": SD,
    "LatentConsistencyModelImg2ImgPipeline": SD,
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusionXLImg2ImgPipeline": SDXL,
    "StableDiffusionXLInpaintPipeline": SDXL,
}
"""Pipeline classes of the checkpoints that are served. Which task the class is for plays no part."""

REFUSED_PIPELINES: Mapping[str, str] = {
    "ControlNet": "a ControlNet beside the U-Net",
    "Adapter": "an adapter beside the U-Net",
    "GLIGEN": "boxes with labels as conditions",
    "Upscale": "a small image and its noise level as conditions",
    "Pix2Pix": "a U-Net of 8 channels that takes an image",
    "Depth2Img": "a U-Net of 5 channels that takes a depth map",
    "UnCLIP": "image embeddings as conditions",
    "ImageVariation": "image embeddings as conditions",
    "StableDiffusion3": "a transformer in place of the U-Net",
    "PixArt": "a transformer in place of the U-Net",
    "Flux": "a transformer in place of the U-Net",
    "Sana": "a transformer in place of the U-Net",
}
"""Part of the pipeline's class: what such a checkpoint has that latentrt does not serve."""

TIME_IDS: Mapping[int, tuple[TimeId, ...]] = {
    6: ("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width"),
    5: ("original_height", "original_width", "crop_top", "crop_left", "aesthetic_score"),
}
"""The micro-conditioning by how many numbers the U-Net embeds."""

UNSUPPORTED: Mapping[str, Mapping[str, str]] = {
    "text_encoder": {"use_attention_mask": "masked padding"},
    "text_encoder_2": {"use_attention_mask": "masked padding"},
    "unet": {
        "class_embed_type": "class embeddings",
        "num_class_embeds": "class embeddings",
        "encoder_hid_dim": "projected text embeddings",
        "encoder_hid_dim_type": "projected text or image embeddings, as IP-Adapters do",
    },
    "vae": {"shift_factor": "shifted latents"},
}
"""Options of each config that change what goes into a network; null, false and 0 turn them off."""

FIRST_SCALING_FACTOR = 0.18215
"""Of the VAEs of SD 1 and 2, whose first configs lack the field."""

STEPS, FEW_STEPS = 30, 4
EMBEDDED_GUIDANCE = 8.5
"""Default of diffusers' latent consistency pipeline."""


def read_model(checkpoint: "Checkpoint") -> Model:
    """The facts that the configs state.

    Raises:
        CheckpointError: the pipeline or one of its parts is of a kind that latentrt does not serve.
    """
    index = checkpoint.config("", "model_index.json")
    conventions = _conventions(checkpoint.path, index)
    _check_classes(checkpoint, index)
    folders = [folder for folder in TOKENIZERS if _has(index, folder)]
    texts = {folder: checkpoint.config(folder) for folder in folders}
    unet, vae = checkpoint.config("unet"), checkpoint.config("vae")
    _check_options(checkpoint.path, {**texts, "unet": unet, "vae": vae}, conventions)
    encoders = tuple(_text_encoder(folder, config, conventions) for folder, config in texts.items())
    time_ids = _time_ids(checkpoint.path, unet, sum(encoder.pooled for encoder in encoders))
    scale = latent_scale(vae)
    model = Model(
        family=_family(time_ids, texts[folders[0]]),
        text_encoders=encoders,
        unet_channels=unet["in_channels"],
        latent_channels=vae["latent_channels"],
        latent_scale=scale,
        scaling_factor=vae.get("scaling_factor", FIRST_SCALING_FACTOR),
        latents_mean=vae.get("latents_mean") or (),
        latents_std=vae.get("latents_std") or (),
        native_size=_one(checkpoint.path, "sample_size", unet["sample_size"]) * scale,
        time_ids=time_ids,
        guidance_embedding=unet.get("time_cond_proj_dim") or 0,
        zero_negative=index.get("force_zeros_for_empty_prompt", conventions.zero_negative),
        scheduler=checkpoint.config("scheduler", "scheduler_config.json"),
    )
    _check_widths(checkpoint.path, model, unet)
    return model


def read_defaults(checkpoint: "Checkpoint") -> Defaults:
    """What a request gets that does not say: few steps where the configs tell of a distilled model.

    Latent consistency models name their scheduler or embed the guidance scale. Turbo and Lightning models can only be
    told by Euler steps with trailing spacing; with a zero terminal SNR that spacing is an ordinary model's.
    """
    scheduler = checkpoint.model.scheduler
    sampler = sampler_for(scheduler)
    embedded = bool(checkpoint.model.guidance_embedding)
    trailing = scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr")
    if embedded or sampler == "lcm" or (trailing and sampler in ("euler", "euler_a")):
        return Defaults(sampler=sampler, steps=FEW_STEPS, guidance=EMBEDDED_GUIDANCE if embedded else 1.0)
    conventions = PIPELINES[checkpoint.config("", "model_index.json")["_class_name"]]
    return Defaults(sampler=sampler, steps=STEPS, guidance=conventions.guidance)


def _has(index: Mapping[str, Any], folder: str) -> bool:
    return bool(index.get(folder) and index[folder][1])


def _conventions(path: Path, index: Mapping[str, Any]) -> Conventions:
    name = str(index.get("_class_name"))
    if name in PIPELINES:
        return PIPELINES[name]
    reason = next((f", which has {what}" for part, what in REFUSED_PIPELINES.items() if part in name), "")
    raise CheckpointError(f"{path}: a {name}{reason}. latentrt serves checkpoints of {', '.join(PIPELINES)}")


def _check_classes(checkpoint: "Checkpoint", index: Mapping[str, Any]) -> None:
    """Every part that is there, and every one that must be, is of the class that latentrt serves."""
    needed = {"unet", "vae", *(folder for folder in TOKENIZERS if _has(index, folder))}
    if not needed & TOKENIZERS.keys():
        needed.add("text_encoder")
    for folder, (library, name) in CLASSES.items():
        found = tuple(index.get(folder) or ("nothing", "nothing"))
        names = VAE_CLASSES if folder == "vae" else (name,)
        if folder in needed and found not in {(library, served) for served in names}:
            served = " and ".join(names)
            raise CheckpointError(f"{checkpoint.path}: {folder} is {found[1]} of {found[0]}; latentrt serves {served}")
    for folder in needed & TOKENIZERS.keys():
        checkpoint.source.tokenizer(TOKENIZERS[folder])


def _check_options(path: Path, configs: Mapping[str, Mapping[str, Any]], conventions: Conventions) -> None:
    for folder, config in configs.items():
        for option, meaning in UNSUPPORTED[folder].items():
            if config.get(option):
                raise CheckpointError(f"{path}: {folder} uses {option} ({meaning}), which latentrt does not serve")
    unet = configs["unet"]
    for option, found, needed in (
        ("addition_embed_type", unet.get("addition_embed_type"), conventions.addition_embed_type),
        ("attention_type", unet.get("attention_type", "default"), "default"),
    ):
        if found != needed:
            raise CheckpointError(f"{path}: the U-Net's {option} is {found}; latentrt serves {needed} in this pipeline")


def _text_encoder(folder: str, config: "Config", conventions: Conventions) -> TextEncoder:
    return TextEncoder(
        component=folder,
        tokenizer=TOKENIZERS[folder],
        width=config["hidden_size"],
        pooled=config["projection_dim"] if CLASSES[folder][1].endswith("WithProjection") else 0,
        layers=config["num_hidden_layers"],
        skipped=conventions.skipped,
        final_norm=conventions.final_norm,
    )


def _time_ids(path: Path, unet: "Config", pooled: int) -> tuple[TimeId, ...]:
    if unet.get("addition_embed_type") is None:
        return ()
    if not pooled:
        raise CheckpointError(f"{path}: the U-Net takes pooled text, but there is no text_encoder_2 to give it")
    count, rest = divmod(unet["projection_class_embeddings_input_dim"] - pooled, unet["addition_time_embed_dim"])
    if rest or count not in TIME_IDS:
        raise CheckpointError(
            f"{path}: the U-Net's number of time ids is {count}; latentrt serves {' and '.join(map(str, TIME_IDS))}"
        )
    return TIME_IDS[count]


def _family(time_ids: tuple[TimeId, ...], first_encoder: Mapping[str, Any]) -> str:
    """A name for people. SD 1's encoder is OpenAI's, with quick_gelu; SD 2's is OpenCLIP's, with gelu."""
    if time_ids:
        return "sdxl-refiner" if "aesthetic_score" in time_ids else "sdxl"
    return "sd15" if first_encoder.get("hidden_act", "quick_gelu") == "quick_gelu" else "sd2"


def _one(path: Path, name: str, value: Any) -> int:
    """The number that a config writes once or once per block or axis."""
    values = value if isinstance(value, list) else [value]
    if len(set(values)) != 1:
        raise CheckpointError(f"{path}: the U-Net's {name} is {value}; latentrt serves one value for all")
    number: int = values[0]
    return number


def _check_widths(path: Path, model: Model, unet: "Config") -> None:
    latents = model.latent_channels
    inputs = {latents: "", 2 * latents + 1: " or, for inpainting, "}
    for name, found, needed in (
        (
            "cross_attention_dim",
            _one(path, "cross_attention_dim", unet["cross_attention_dim"]),
            {model.context_width: ""},
        ),
        ("in_channels", unet["in_channels"], inputs),
        ("out_channels", unet.get("out_channels", 4), {latents: ""}),
    ):
        if found not in needed:
            wanted = "".join(f"{before}{number}" for number, before in needed.items())
            raise CheckpointError(
                f"{path}: the U-Net's {name} is {found}; this checkpoint's text encoders and VAE need {wanted}"
            )
    for name in ("latents_mean", "latents_std"):
        count = len(getattr(model, name))
        if count not in (0, latents) or bool(model.latents_mean) != bool(model.latents_std):
            raise CheckpointError(
                f"{path}: the VAE's {name} has {count} numbers; latents_mean and latents_std must both have {latents}"
            )
