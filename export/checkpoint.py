"""A checkpoint: the facts that its configs state, and its networks."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from latentrt.export.sources import open_source
from latentrt.export.sources.source import Config, Source
from latentrt.export.sources.vae import VAE_CLASSES, latent_scale
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.model import Model, TextEncoder

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Folder of each network, the library its class lives in and the class itself, as model_index.json names them. A VAE
may also be an AutoencoderTiny."""

UNSUPPORTED_UNET = ("class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim")
UNSUPPORTED_VAE = ("shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, wherever its configs and weights come from."""

    source: Source

    @classmethod
    def open(
        cls, path: str | Path, random_seed: int | None = None, variant: str | None = None, **options: Any
    ) -> "Checkpoint":
        """Read every config, and find every weight, before anything is loaded. `options`: see `open_source`.

        Raises:
            CheckpointError: not a checkpoint, an unknown family, a missing file, or weights only as pickles.
        """
        checkpoint = cls(open_source(Path(path), random_seed, variant, **options))
        checkpoint.model  # noqa: B018 - reads and checks every config
        checkpoint.source.check({folder: checkpoint.network_class(folder) for folder in CLASSES})
        return checkpoint

    @property
    def path(self) -> Path:
        """What messages name."""
        return self.source.path

    def config(self, folder: str, name: str = "config.json") -> Config:
        """One component's config."""
        return self.source.config(folder, name)

    def vocabulary(self, folder: str) -> int:
        """How many token ids a network knows; 0 for one that takes no tokens."""
        return int(self.config(folder).get("vocab_size", 0))

    @cached_property
    def model(self) -> Model:
        """The facts that the configs state.

        Raises:
            CheckpointError: the pipeline or one of its parts is of a kind that latentrt does not serve.
        """
        try:
            return self._read_model()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{self.path}: {where}: {first['msg']}. Download the checkpoint again") from error

    def _read_model(self) -> Model:
        index = self.config("", "model_index.json")
        self._check_classes(index)
        unet, vae = self.config("unet"), self.config("vae")
        self._check_options(unet, vae)
        first, second = self.config("text_encoder"), self.config("text_encoder_2")
        scale = latent_scale(vae)
        pooled = second["projection_dim"]
        model = Model(
            family="sdxl",
            text_encoders=(
                TextEncoder(component="text_encoder", tokenizer="tokenizer", width=first["hidden_size"]),
                TextEncoder(
                    component="text_encoder_2", tokenizer="tokenizer_2", width=second["hidden_size"], pooled=pooled
                ),
            ),
            unet_channels=unet["in_channels"],
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            scaling_factor=vae["scaling_factor"],
            native_size=unet["sample_size"] * scale,
            time_ids=(unet["projection_class_embeddings_input_dim"] - pooled) // unet["addition_time_embed_dim"],
            zero_negative=index.get("force_zeros_for_empty_prompt", False),
            scheduler=self.config("scheduler", "scheduler_config.json"),
        )
        self._check_widths(model, unet)
        return model

    def _check_classes(self, index: dict[str, Any]) -> None:
        if index.get("_class_name") != "StableDiffusionXLPipeline":
            raise CheckpointError(
                f"{self.path}: a {index.get('_class_name')}; this version serves StableDiffusionXLPipeline checkpoints"
            )
        for folder, (library, name) in CLASSES.items():
            found = tuple(index.get(folder) or ("nothing", "nothing"))
            names = VAE_CLASSES if folder == "vae" else (name,)
            if found not in {(library, allowed) for allowed in names}:
                raise CheckpointError(
                    f"{self.path}: {folder} is {found[1]} of {found[0]}; this version serves {' and '.join(names)}"
                )
        for folder in ("tokenizer", "tokenizer_2"):
            self.source.tokenizer(folder)

    def _check_options(self, unet: dict[str, Any], vae: dict[str, Any]) -> None:
        if unet.get("addition_embed_type") != "text_time":
            raise CheckpointError(
                f"{self.path}: the U-Net's addition_embed_type is {unet.get('addition_embed_type')}; "
                "this version serves SDXL, which has text_time"
            )
        for config, folder, options in ((unet, "unet", UNSUPPORTED_UNET), (vae, "vae", UNSUPPORTED_VAE)):
            for option in options:
                if config.get(option):  # a shift of 0.0, which TAESD states, shifts nothing
                    raise CheckpointError(f"{self.path}: {folder} uses {option}, which this version does not serve")

    def _check_widths(self, model: Model, unet: dict[str, Any]) -> None:
        for name, found, needed in (
            ("cross_attention_dim", unet["cross_attention_dim"], model.context_width),
            ("in_channels", unet["in_channels"], model.latent_channels),
            ("number of time ids", model.time_ids, 6),
        ):
            if found != needed:
                raise CheckpointError(f"{self.path}: the U-Net's {name} is {found}; an SDXL base model needs {needed}")

    def network_class(self, folder: str) -> Any:
        """The class of one network."""
        library, name = self.config("", "model_index.json")[folder]
        return getattr(import_module(library), name)

    def network(self, folder: str, dtype: torch.dtype) -> torch.nn.Module:
        """One network with its weights in `dtype`, in evaluation mode.

        Raises:
            CheckpointError: the weights cannot be read, or are not exactly the network's tensors.
        """
        return self.source.network(folder, self.network_class(folder), dtype)

    def write_tokenizer(self, name: str, folder: Path) -> None:
        """Write one tokenizer's files into a new folder."""
        folder.mkdir()
        for file, content in self.source.tokenizer(name).items():
            (folder / file).write_bytes(content)

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as fields of the bundle's `Provenance`."""
        return {"vae": f"{self.network_class('vae').__name__} of the checkpoint"} | self.source.provenance()

    def weights_sha256(self) -> str:
        """A hash that changes with any weight, LoRA or config; with random weights, with any config or the seed."""
        digest = hashlib.sha256()
        for part in self.source.identity(CLASSES):
            digest.update(part)
        return digest.hexdigest()
