"""The sources of a checkpoint: a folder, one file, another U-Net or VAE, LoRAs; one interface for all of them.

- `Folder`: a folder in diffusers format; its names for networks and configs are everyone's.
- `SingleFile`: one .safetensors file in an original layout, with configs that ship here.
- `OtherUnet`: a source whose U-Net is replaced by one from a folder or a `UnetFile`.
- `OtherVae`: a source whose VAE is replaced by one from a folder or a `VaeFile`.
- `WithLoras`: a source with LoRAs added to its weights.
"""

from collections.abc import Sequence
from pathlib import Path

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.lora import LoraFile, WithLoras
from latentrt.export.sources.single_file import SingleFile
from latentrt.export.sources.source import Source
from latentrt.export.sources.unet import OtherUnet
from latentrt.export.sources.vae import OtherVae
from latentrt.export.sources.weight_file import WeightFile, given_path
from latentrt.runtime.errors import CheckpointError, RequestError


def open_source(
    path: Path,
    random_seed: int | None = None,
    variant: str | None = None,
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    prediction_type: str | None = None,
    unet: Path | None = None,
    vae: Path | None = None,
    loras: Sequence[LoraFile] = (),
) -> Source:
    """Open the source of a checkpoint. `config` and `tokenizer` are for single files, `prediction_type` for these and
    for another U-Net, `unet`: one that is published alone.

    Raises:
        CheckpointError: a path is not a checkpoint, VAE or LoRA.
        RequestError: an option is for another kind of checkpoint.
    """
    source: Source
    options = {"": path, "--config ": config, "--tokenizer ": tokenizer, "--unet ": unet, "--vae ": vae}
    for option, named in options.items():
        if named is not None and not named.exists():
            raise CheckpointError(
                f"{option}{named}: no such file or folder. latentrt downloads nothing; name one that is there"
            )
    if path.is_file():
        if random_seed is not None or variant is not None:
            raise RequestError(f"{path}: --random-weights and --variant are for folders in diffusers format, not files")
        folder = None if config is None else Folder(given_path(config))
        source = SingleFile(WeightFile.open(given_path(path)), folder, tokenizer, prediction_type)
    else:
        predicts = prediction_type if unet is None else None
        _check_folder(path, {"--config": config, "--tokenizer": tokenizer, "--prediction-type": predicts})
        source = Folder(given_path(path), random_seed, variant)
    if unet is not None:
        source = OtherUnet(source, unet, random_seed, variant, prediction_type)
    if vae is not None:
        source = OtherVae(source, vae, random_seed, variant)
    return WithLoras(source, loras) if loras else source


def _check_folder(path: Path, options: dict[str, object]) -> None:
    if not (path / "model_index.json").is_file():
        raise CheckpointError(
            f"{path}: not a checkpoint, it has no model_index.json. latentrt reads folders in diffusers format, and "
            "single .safetensors files in the original layouts"
        )
    if given := [name for name, value in options.items() if value is not None]:
        raise RequestError(f"{path}: {' and '.join(given)}: for single files; this folder has its own configs")
