"""The table of components: the standard interface of a full-size SDXL model, and the dims behind it."""

import pytest
from hollow_bundles import LIMITS, PRECISIONS, SDXL

from latentrt.runtime.bundle.components import MAX_HISTORY, MAX_NOISES, MAX_STEPS, component_specs, request_dims
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import Dim

# N rows = 2 guidance branches of 2 images, T = 2 chunks, 1024 x 832 pixels.
SIZES = {"texts": 3, "rows": 4, "images": 2, "vae_images": 2, "tokens": 154, "latent_height": 104, "latent_width": 128}
SIZES |= {"steps": 30, "history": 2, "noises": 1}

SHAPES = {
    "text_encoder": ({"input_ids": (3, 77), "clip_skip": (3,)}, {"hidden": (3, 77, 768)}),
    "text_encoder_2": ({"input_ids": (3, 77), "clip_skip": (3,)}, {"hidden": (3, 77, 1280), "pooled": (3, 1280)}),
    "unet": (
        {
            "sample": (4, 4, 104, 128),
            "timestep": (4,),
            "encoder_hidden_states": (4, 154, 2048),
            "text_embeds": (4, 1280),
            "time_ids": (4, 6),
        },
        {"noise_pred": (4, 4, 104, 128)},
    ),
    "vae_decoder": ({"latent": (2, 4, 104, 128)}, {"image": (2, 832, 1024, 3), "magnitude": (2,)}),
    "vae_encoder": ({"image": (2, 3, 832, 1024)}, {"mean": (2, 4, 104, 128), "logvar": (2, 4, 104, 128)}),
    "sampler": (
        {
            "noise_pred": (4, 4, 104, 128),
            "state": (2, 2, 4, 104, 128),
            "step": (2,),
            "failed": (2,),
            "weights": (2, 31, 2, 4),
            "readout": (2, 31, 2),
            "timesteps": (2, 31),
            "guidance": (2, 4),
            "rescale": (2,),
            "text_row": (2,),
            "row_image": (4,),
            "draws": (2, 31),
            "noise": (2, 1, 4, 104, 128),
            "mask": (2, 1, 104, 128),
            "levels": (2, 31, 2),
            "original": (2, 4, 104, 128),
            "original_noise": (2, 4, 104, 128),
        },
        {
            "next_state": (2, 2, 4, 104, 128),
            "next_step": (2,),
            "next_failed": (2,),
            "sample": (4, 4, 104, 128),
            "timestep": (4,),
        },
    ),
}
FLOAT32 = {"timestep", "time_ids", "magnitude", "state", "weights", "readout", "timesteps", "guidance", "noise"} | {
    "rescale",
    "mask",
    "levels",
    "original",
    "original_noise",
}
INT64 = ("input_ids", "clip_skip", "step", "failed", "row_image", "text_row", "draws", "next_step", "next_failed")
OTHER = dict.fromkeys(INT64, "int64") | {"next_state": "float32"}


@pytest.fixture(scope="module")
def specs():
    return component_specs(SDXL, LIMITS.replace(vae_images="1:1:2"), PRECISIONS)


def test_the_components_of_sdxl(specs):
    assert list(specs) == ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder", "sampler"]


@pytest.mark.parametrize("name", SHAPES)
def test_ports_have_the_standard_names_and_shapes(specs, name):
    spec = specs[name]
    inputs, outputs = SHAPES[name]
    assert {port.name: port.shape(SIZES) for port in spec.inputs} == inputs
    assert {port.name: port.shape(SIZES) for port in spec.outputs} == outputs
    assert [port.name for port in spec.ports] == [*inputs, *outputs]
    spec.check({dim: SIZES[dim] for dim in spec.dims})


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("fp32", "float32"), ("bf16", "bfloat16")])
def test_dtypes_follow_the_precision(precision, dtype):
    for name, spec in component_specs(SDXL, LIMITS, dict.fromkeys(PRECISIONS, precision)).items():
        for port in spec.ports:
            wanted = "float32" if port.name in FLOAT32 else OTHER.get(port.name, dtype)
            if (name, port.name) == ("vae_decoder", "image"):
                wanted = "uint8"
            assert port.dtype == wanted, f"{name}.{port.name}"


def test_one_component_may_have_its_own_precision():
    specs = component_specs(SDXL, LIMITS, PRECISIONS | {"vae_decoder": "fp32"})
    assert specs["vae_decoder"].inputs[0].dtype == "float32"
    assert specs["unet"].inputs[0].dtype == specs["sampler"].inputs[0].dtype == "float16"


def test_named_components_only():
    assert list(component_specs(SDXL, LIMITS, PRECISIONS, ("unet", "sampler"))) == ["unet", "sampler"]


def test_dims_of_requests():
    limits = Limits(images="1:2:4", width="512:1024:1536", height="768", tokens="77:154:231", vae_images="1:1:2")
    dims = request_dims(limits, SDXL)
    assert {name: str(dim) for name, dim in dims.items()} == {
        "images": "1:2:4",
        "vae_images": "1:1:2",
        "rows": "1:4:8",  # the double for guidance, a single one without it
        "texts": "1:4:24",  # prompts and negatives, all different, of three chunks each
        "tokens": "77:154:231",
        "latent_height": "96:96:96",
        "latent_width": "64:128:192",
        "steps": f"1:30:{MAX_STEPS}",
        "history": f"2:2:{MAX_HISTORY}",
        "noises": f"1:1:{MAX_NOISES}",
    }
    assert all(name == dim.name for name, dim in dims.items())


def test_static_limits_still_serve_both_kinds_of_guidance():
    dims = request_dims(LIMITS.replace(images="2"), SDXL)
    assert dims["images"] == Dim("images", 2, 2, 2)
    assert dims["rows"] == Dim("rows", 2, 4, 4)


def test_every_dim_is_described_by_its_component(specs):
    assert sorted(specs["unet"].dims) == ["latent_height", "latent_width", "rows", "tokens"]
    assert sorted(specs["text_encoder"].dims) == ["texts"]
    assert sorted(specs["vae_decoder"].dims) == ["latent_height", "latent_width", "vae_images"]
    assert {"images", "rows", "steps", "history", "noises"} <= set(specs["sampler"].dims)


def test_an_inpainting_unet_takes_more_channels_than_it_gives():
    specs = component_specs(SDXL.model_copy(update={"unet_channels": 9}), LIMITS, PRECISIONS)
    assert specs["unet"].inputs[0].shape(SIZES) == (4, 9, 104, 128)
    assert specs["unet"].outputs[0].shape(SIZES) == (4, 4, 104, 128)


def test_a_model_without_micro_conditioning_has_no_such_inputs():
    specs = component_specs(SDXL.model_copy(update={"time_ids": ()}), LIMITS, PRECISIONS)
    assert [port.name for port in specs["unet"].inputs] == ["sample", "timestep", "encoder_hidden_states"]


@pytest.mark.parametrize("time_ids", [SDXL.time_ids, ()])
def test_a_model_with_embedded_guidance_takes_its_embedding(time_ids):
    model = SDXL.model_copy(update={"time_ids": time_ids, "guidance_embedding": 256})
    last = component_specs(model, LIMITS, PRECISIONS)["unet"].inputs[-1]
    assert (last.name, str(last)) == ("timestep_cond", "float32[rows, 256]")
