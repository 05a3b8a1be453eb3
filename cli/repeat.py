"""From the request in a picture file to the options that would make it."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from PIL import Image

from latentrt.cli.job import UPSCALE, Job
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.bundle import bundle_folder, is_bundle
from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import PICTURES, BundleNote, Metadata, PictureNote, describe_picture
from latentrt.runtime.record.picture_files import read_request
from latentrt.runtime.record.webui import Parameters

logger = logging.getLogger(__name__)


def open_picture(file: Path) -> Image.Image:
    """Open a picture; a request rotates it as its EXIF orientation says.

    Raises:
        RequestError: the file is missing, or not a picture.
    """
    try:
        image = Image.open(file)
        image.load()
    except Exception as error:  # Pillow's readers of damaged files raise many kinds
        raise RequestError(f"{file}: not readable as a picture ({error})") from error
    return image


def repeated(file: Path, bundle: Bundle, given: Collection[str]) -> Job:
    """The job in a picture file. Pictures and a refiner that the options `given` replace are not looked for.

    Logs a warning for whatever cannot be repeated.

    Raises:
        RequestError: the file holds no request, or a file that it needs is missing or has changed.
    """
    stored = read_request(file, sampler="sampler" not in given)
    if isinstance(stored, Parameters):
        return _from_webui(file, stored, bundle)
    _compare_bundles(file, stored.bundle, bundle)
    try:
        options: dict[str, Any] = {**stored.given_settings()}
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    for name in PICTURES:
        notes = stored.picture_notes(name)
        if notes and name not in given:
            options[name] = [_find_picture(file, name, note) for note in notes]
    options |= _second_pass(file, stored, bundle, given)
    return Job(stored.prompt, options)


def _from_webui(file: Path, stored: Parameters, bundle: Bundle) -> Job:
    """The job in the web interface's fields, without its clip skip for models that skip layers by themselves."""
    options: dict[str, Any] = {**stored.settings}
    ignored = list(stored.ignored)
    if "clip_skip" in options and any(encoder.skipped for encoder in bundle.manifest.model.text_encoders):
        ignored.append(f"Clip skip: {options.pop('clip_skip') + 1}")
    if ignored:
        logger.warning("%s: some of its `parameters` are left out: %s", file, ", ".join(ignored))
    return Job((stored.prompt,), options)


def _compare_bundles(file: Path, note: BundleNote, bundle: Bundle) -> None:
    """Log a warning if other weights, or another precision, will give another picture."""
    manifest = bundle.manifest
    if note.weights_sha256 != manifest.provenance.weights_sha256:
        logger.warning(
            "%s: drawn with other weights (%s, sha256 %s…); %s has sha256 %s…, and draws another picture",
            *(file, note.name, note.weights_sha256[:10], bundle.path, manifest.provenance.weights_sha256[:10]),
        )
    elif note.precision != manifest.precision:
        logger.warning(
            "%s: drawn in %s; %s is %s, and the picture differs slightly",
            *(file, note.precision, bundle.path, manifest.precision),
        )


def _second_pass(file: Path, stored: Metadata, bundle: Bundle, given: Collection[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if stored.upscale is not None:
        options |= {option: getattr(stored.upscale, field) for field, option in UPSCALE.items()}
    if stored.refiner is not None:
        if "refiner" not in given:
            options["refiner"] = _find_refiner(file, stored.refiner.bundle, bundle)
        if not {"refiner_start", "refiner_strength"} & set(given):
            how = {"refiner_start": stored.refiner.start, "refiner_strength": stored.refiner.strength}
            options |= {name: value for name, value in how.items() if value is not None}
    return options


def _find_picture(png: Path, name: str, note: PictureNote) -> Image.Image:
    if note.file is None:
        raise RequestError(f"{png}: its {name} came from no file. Name it with --{name}")
    found = next((place for place in (Path(note.file), png.parent / note.file) if place.is_file()), None)
    if found is None:
        raise RequestError(
            f"{png}: its {name} {note.file} is neither here nor beside the PNG. Put it there, or name it with --{name}"
        )
    picture = open_picture(found)
    if describe_picture(picture, PICTURES[name]).sha256 != note.sha256:
        raise RequestError(
            f"{found}: not the {name} that {png} was drawn with: its pixels have another sha256 than "
            f"{note.sha256[:10]}… ({note.width} x {note.height}). Put the right one there, or name one with --{name}"
        )
    return picture


def _find_refiner(png: Path, note: BundleNote, bundle: Bundle) -> Path:
    places = [bundle_folder(Path(note.name)), bundle.path.parent / note.name]
    found = next((place for place in places if is_bundle(place)), None)
    if found is None:
        raise RequestError(
            f"{png}: its refiner {note.name} is neither here nor beside {bundle.path}. Name it with --refiner"
        )
    sha256 = Bundle.open(found).manifest.provenance.weights_sha256
    if sha256 != note.weights_sha256:
        raise RequestError(
            f"{found}: not the refiner that {png} was drawn with: its weights have sha256 {sha256[:10]}…, not "
            f"{note.weights_sha256[:10]}…. Name the right one, or another, with --refiner"
        )
    return found
