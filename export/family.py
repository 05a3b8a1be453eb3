"""The facts of a checkpoint, read from its config files once it is clear that latentrt serves them.

Families differ in data alone: which text encoders there are, which of their layers the U-Net reads, which inputs it
takes. Only what no config file says is looked up by the pipeline's class (`pipelines.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from latentrt.export.pipelines import Conventions, find_conventions
from latentrt.export.schedule import SCHEDULER_CONFIG, named, read_schedule
from latentrt.export.sources.config_fields import one_for_all, positive
from latentrt.export.sources.families import is_openai_clip
from latentrt.export.sources.places import unet_layers
from latentrt.export.sources.source import TOKENIZERS, Config, Source
from latentrt.export.sources.vae import VAE_CLASSES, latent_scale
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.bundle.model import Model, TextEncoder, TimeId, inpainting_channels
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.samplers import sampler_for

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Folder of each network -> library and name of its class, as in `model_index.json`. For the VAE, `VAE_CLASSES`."""

TIME_IDS: Mapping[int, tuple[TimeId, ...]] = {
    6: ("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width"),
    5: ("original_height", "original_width", "crop_top", "crop_left", "aesthetic_score"),
}
"""Micro-conditioning by the number of time ids that the U-Net embeds: SDXL's, and its refiner's."""

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
"""Folder -> option of its config that changes what goes into the network -> what it asks for.

Null, false and 0 turn an option off."""

STEPS, FEW_STEPS = 30, 4
"""Default steps of an ordinary and of a distilled model."""

EMBEDDED_GUIDANCE = 8.5
"""Default guidance of diffusers' latent consistency pipeline."""


def read_model(source: Source) -> Model:
    """Read the facts that the configs state.

    Raises:
        CheckpointError: the pipeline or one of its parts is of a kind that latentrt does not serve.
    """
    index = source.config("", "model_index.json")
    conventions = find_conventions(source.path, index)
    _check_classes(source, index)
    folders = [folder for folder in TOKENIZERS if _has(index, folder)]
    texts = {folder: source.config(folder) for folder in folders}
    unet, vae = source.config("unet"), source.config("vae")
    _check_options(source.path, {**texts, "unet": unet, "vae": vae}, conventions)
    encoders = tuple(_text_encoder(folder, config, conventions) for folder, config in texts.items())
    time_ids = _time_ids(source.path, unet, sum(encoder.pooled for encoder in encoders))
    scale = latent_scale(vae)
    model = Model(
        family=_family(time_ids, texts[folders[0]]),
        text_encoders=encoders,
        unet_channels=unet["in_channels"],
        unet_layers=unet_layers(unet),
        latent_channels=vae["latent_channels"],
        latent_scale=scale,
        scaling_factor=_scaling_factor(vae),
        latents_mean=vae.get("latents_mean") or (),
        latents_std=vae.get("latents_std") or (),
        native_size=_sample_size(unet, conventions) * scale,
        time_ids=time_ids,
        guidance_embedding=unet.get("time_cond_proj_dim") or 0,
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", conventions.zero_negative)),
        scheduler=read_schedule(source, index, conventions),
    )
    _check_widths(source.path, model, unet)
    return model


def read_defaults(source: Source, model: Model) -> Defaults:
    """The defaults of a request: few steps where the configs show that the model is distilled.

    Latent consistency models name their scheduler or embed the guidance scale. Turbo and Lightning models show only by
    Euler steps with trailing spacing; together with a zero terminal SNR that spacing is an ordinary model's.
    """
    scheduler = model.scheduler
    try:
        sampler = sampler_for(scheduler)
    except CheckpointError as error:
        raise CheckpointError(named(source.config("scheduler", SCHEDULER_CONFIG).file, error)) from error
    embedded = bool(model.guidance_embedding)
    trailing = scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr")
    if embedded or sampler == "lcm" or (trailing and sampler in ("euler", "euler_a")):
        return Defaults(sampler=sampler, steps=FEW_STEPS, guidance=EMBEDDED_GUIDANCE if embedded else 1.0)
    conventions = find_conventions(source.path, source.config("", "model_index.json"))
    return Defaults(sampler=sampler, steps=STEPS, guidance=conventions.guidance)


def _has(index: Mapping[str, Any], folder: str) -> bool:
    return bool(index.get(folder) and index[folder][1])


def _check_classes(source: Source, index: Mapping[str, Any]) -> None:
    """Refuse a network that is missing or of another class than `CLASSES` says, and a missing tokenizer."""
    needed = {"unet", "vae", *(folder for folder in TOKENIZERS if _has(index, folder))}
    if not needed & TOKENIZERS.keys():
        needed.add("text_encoder")
    for folder, (library, name) in CLASSES.items():
        found = tuple(index.get(folder) or ("nothing", "nothing"))
        names = VAE_CLASSES if folder == "vae" else (name,)
        if folder in needed and found not in {(library, accepted) for accepted in names}:
            raise CheckpointError(
                f"{source.path}: {folder} is {found[1]} of {found[0]}; latentrt serves {' and '.join(names)}"
            )
    for folder in needed & TOKENIZERS.keys():
        source.tokenizer(TOKENIZERS[folder])


def _check_options(path: Path, configs: Mapping[str, Mapping[str, Any]], conventions: Conventions) -> None:
    for folder, config in configs.items():
        for option, meaning in UNSUPPORTED[folder].items():
            if config.get(option):
                raise CheckpointError(f"{path}: {folder} uses {option} ({meaning}), which latentrt does not serve")
    unet = configs["unet"]
    for option, value, needed in (
        ("addition_embed_type", unet.get("addition_embed_type"), conventions.addition_embed_type),
        ("attention_type", unet.get("attention_type", "default"), "default"),
    ):
        if value != needed:
            raise CheckpointError(f"{path}: the U-Net's {option} is {value}; latentrt serves {needed} in this pipeline")


def _text_encoder(folder: str, config: Config, conventions: Conventions) -> TextEncoder:
    if (longest := positive(config, "max_position_embeddings")) < TOKENS_PER_CHUNK:
        raise CheckpointError(
            f"{config.file}: max_position_embeddings is {longest}; prompts are read in chunks of {TOKENS_PER_CHUNK}"
        )
    return TextEncoder(
        component=folder,
        tokenizer=TOKENIZERS[folder],
        width=positive(config, "hidden_size"),
        pooled=positive(config, "projection_dim") if CLASSES[folder][1].endswith("WithProjection") else 0,
        layers=positive(config, "num_hidden_layers"),
        skipped=conventions.skipped,
        final_norm=conventions.final_norm,
    )


def _time_ids(path: Path, unet: Config, pooled: int) -> tuple[TimeId, ...]:
    if unet.get("addition_embed_type") is None:
        return ()
    if not pooled:
        raise CheckpointError(f"{path}: the U-Net takes pooled text, but there is no text_encoder_2 to give it")
    width, per_id = positive(unet, "projection_class_embeddings_input_dim"), positive(unet, "addition_time_embed_dim")
    count, rest = divmod(width - pooled, per_id)
    if rest or count not in TIME_IDS:
        raise CheckpointError(
            f"{path}: the U-Net's number of time ids is {count}; latentrt serves {' and '.join(map(str, TIME_IDS))}"
        )
    return TIME_IDS[count]


def _family(time_ids: tuple[TimeId, ...], first_encoder: Mapping[str, Any]) -> str:
    """Name the family for people to read: SD 1 has OpenAI's text encoder, SD 2 has OpenCLIP's."""
    if time_ids:
        return "sdxl-refiner" if "aesthetic_score" in time_ids else "sdxl"
    return "sd15" if is_openai_clip(first_encoder) else "sd2"


def _scaling_factor(vae: Config) -> float:
    factor: float = vae["scaling_factor"]
    for name, values in (("scaling_factor", [factor]), ("latents_std", vae.get("latents_std") or ())):
        if not all(value > 0 for value in values):
            raise CheckpointError(
                f"{vae.file}: {name} is {vae[name]}; latents are divided by it, so it must be above 0"
            )
    return factor


def _sample_size(unet: Config, conventions: Conventions) -> int:
    """Latents along each axis of the size that the model was trained with, as diffusers' pipelines find it."""
    if unet.get("sample_size") is None:
        return conventions.sample_size
    size = one_for_all(unet, "sample_size")
    written = unet.get("_diffusers_version")
    if not conventions.repairs_sample_size or written is None or isinstance(unet["sample_size"], list):
        return size
    try:
        is_old = Version(Version(str(written)).base_version) < Version("0.9.0.dev0")
    except InvalidVersion as error:
        raise CheckpointError(f"{unet.file}: _diffusers_version is {written!r}, which is no version") from error
    return max(size, conventions.sample_size) if is_old else size


def _check_widths(path: Path, model: Model, unet: Config) -> None:
    latents = model.latent_channels
    # Each width that fits -> the words before it in the message.
    inputs = {latents: "", inpainting_channels(latents): " or, for inpainting, "}
    for name, width, allowed in (
        (
            "cross_attention_dim",
            one_for_all(unet, "cross_attention_dim"),
            {model.context_width: ""},
        ),
        ("in_channels", unet["in_channels"], inputs),
        ("out_channels", unet["out_channels"], {latents: ""}),
    ):
        if width not in allowed:
            needed = "".join(f"{before}{number}" for number, before in allowed.items())
            raise CheckpointError(
                f"{path}: the U-Net's {name} is {width}; this checkpoint's text encoders and VAE need {needed}"
            )
    for name in ("latents_mean", "latents_std"):
        count = len(getattr(model, name))
        if count not in (0, latents) or bool(model.latents_mean) != bool(model.latents_std):
            raise CheckpointError(
                f"{path}: the VAE's {name} has {count} numbers; latents_mean and latents_std must both have {latents}"
            )
