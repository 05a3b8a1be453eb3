"""Bundles made by hand, whose ONNX and engine files hold a few bytes of text: for what is decided before one runs."""

import json
import shutil
from pathlib import Path
from typing import Any

from latentrt.demo import CHECKPOINT
from latentrt.export.family import TIME_IDS
from latentrt.runtime.backends import identity, open_backend
from latentrt.runtime.build_selection import Selection
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import BUILD, MANIFEST, describe_file, write_record
from latentrt.runtime.bundle.build_record import BuildRecord, EngineRecord
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.manifest import ComponentRecord, Defaults, Manifest, Provenance, port_table
from latentrt.runtime.bundle.model import Model, TextEncoder
from latentrt.runtime.bundle.specs import ComponentSpec, port
from latentrt.runtime.bundle.unet_parts import BODY, LOOP_INPUTS, PROLOGUE, replace_whole
from latentrt.runtime.pipeline import Pipeline

SDXL = Model(
    family="sdxl",
    text_encoders=(
        TextEncoder(component="text_encoder", tokenizer="tokenizer", width=768, layers=12, skipped=1, final_norm=False),
        TextEncoder(
            component="text_encoder_2",
            tokenizer="tokenizer_2",
            width=1280,
            pooled=1280,
            layers=32,
            skipped=1,
            final_norm=False,
        ),
    ),
    unet_channels=4,
    latent_channels=4,
    latent_scale=8,
    scaling_factor=0.13025,
    native_size=1024,
    time_ids=TIME_IDS[6],
    zero_negative=True,
    scheduler=json.loads((CHECKPOINT / "scheduler" / "scheduler_config.json").read_text()),
)
"""Facts of the full-size SDXL base model."""

LIMITS = Limits.around(1024)
PRECISIONS = dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"), "fp16")


def write_hollow_bundle(folder: Path, limits: Limits = LIMITS) -> Bundle:
    """A bundle of full-size SDXL with the demo's tokenizers."""
    specs = component_specs(SDXL, limits, PRECISIONS)
    components = {}
    for name, spec in specs.items():
        path = f"onnx/fp16/{name}.onnx"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"the graph of {name}")
        components[name] = ComponentRecord(
            precision="fp16",
            files=(path,),
            inputs=port_table(spec.inputs),
            outputs=port_table(spec.outputs),
            parameters=0,
            nodes=0,
        )
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(CHECKPOINT / name, folder / name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(
        latentrt="0.1.0",
        precision="fp16",
        model=SDXL,
        limits=limits,
        defaults=Defaults(sampler="euler", steps=30, guidance=5.0),
        components=components,
        provenance=Provenance(checkpoint="none", weights="none", weights_sha256="0" * 64, created="", versions={}),
        files={path.relative_to(folder).as_posix(): describe_file(path) for path in files},
    )
    write_record(folder / MANIFEST, manifest)
    return Bundle.open(folder)


def write_hollow_build(
    bundle: Bundle, backend: str, target: str, limits: Limits = LIMITS, hoisted: bool = False, **told: Any
) -> BuildRecord:
    """Add a build of every component with the keys that this installation gives; `hoisted`: the U-Net in two parts.

    `told`: further fields of the build's record, such as `options`.
    """
    specs = bundle.manifest.specs(limits)
    specs = replace_whole(specs, unet_parts(specs["unet"])) if hoisted else specs
    build = BuildRecord(backend=backend, precision="fp16", target=target, limits=limits, engines={}, **told)
    engines = {}
    for name, key in bundle.keys(specs, **identity(backend, target, build.options)).items():
        path = f"builds/{build.name}/{name}.engine"
        (bundle.path / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle.path / path).write_text(f"the engine of {name}")
        engines[name] = EngineRecord(key=key, files={path: describe_file(bundle.path / path)}, seconds=1.0)
    build = build.model_copy(update={"engines": engines})
    write_record(bundle.path / "builds" / build.name / BUILD, build)
    return build


def unet_parts(whole: ComponentSpec) -> dict[str, ComponentSpec]:
    """A prologue that makes one key of the prompt, and a body that takes it."""
    key = port("key", "float16", "rows", "10", "tokens", "64")
    loop = tuple(found for found in whole.inputs if found.name in LOOP_INPUTS)
    rest = tuple(found for found in whole.inputs if found.name not in LOOP_INPUTS)
    return {
        PROLOGUE: ComponentSpec(PROLOGUE, rest, (key,), whole.dims, whole.profiles),
        BODY: ComponentSpec(BODY, (*loop, key), whole.outputs, whole.dims, whole.profiles),
    }


def without_engines(bundle: Bundle) -> Pipeline:
    """A pipeline that takes requests and has nothing to run them with."""
    selection = Selection("onnxruntime", "cpu", bundle.manifest.limits, {}, {})
    return Pipeline(bundle, selection, open_backend("onnxruntime", "cpu"), {})
