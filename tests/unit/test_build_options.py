"""Options of TensorRT's search for kernels: their defaults, their place in the key, what is refused."""

from typing import get_args

import pytest
from tensorrt_stand_ins import import_tensorrt_bindings

from latentrt.runtime.backends import registry
from latentrt.runtime.backends.registry import identity
from latentrt.runtime.bundle.build_options import RANGES, BuildOptions, Tiling
from latentrt.runtime.errors import RequestError


@pytest.mark.parametrize("engine", ["unet", "unet_body", "vae_decoder"])
def test_the_engines_in_which_the_time_goes_are_searched_longest(engine):
    assert str(BuildOptions().for_engine(engine)) == (
        "optimization level 4, timing iterations 4, tiling fast, aux streams 0"
    )


@pytest.mark.parametrize("engine", ["unet_prologue", "text_encoder", "text_encoder_2", "vae_encoder", "sampler"])
def test_the_others_are_built_as_tensorrt_would(engine):
    assert str(BuildOptions().for_engine(engine)) == (
        "optimization level 3, timing iterations 1, tiling none, aux streams 0"
    )


def test_what_is_given_holds_for_all():
    given = BuildOptions(optimization_level=0, tiling="full", aux_streams=2)
    for engine in ("unet_body", "sampler"):
        found = given.for_engine(engine)
        assert (found.optimization_level, found.tiling, found.aux_streams) == (0, "full", 2)
        assert found.timing_iterations is not None
    assert given.given == {"--optimization-level": "0", "--tiling": "full", "--aux-streams": "2"}
    assert BuildOptions().given == {}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range_are_refused(name):
    low, high = RANGES[name]
    for value in (low - 1, high + 1):
        with pytest.raises(RequestError, match=f"^{name.replace('_', ' ')} {value}: must be {low} to {high}$"):
            BuildOptions(**{name: value})
    assert BuildOptions(**{name: high}).given


def test_the_key_of_a_tensorrt_engine_has_all_of_them(monkeypatch):
    monkeypatch.setattr(registry, "load_module", lambda name: registry)
    monkeypatch.setattr(registry, "__version__", "11", raising=False)
    options = identity("tensorrt", "sm89", BuildOptions(tiling="none"))["options"]
    assert options("unet_body") == (
        "RUNTIME_ACTIVATION_RESIZE_10_10, optimization level 4, timing iterations 4, tiling none, aux streams 0"
    )
    assert identity("tensorrt-rtx", "sm80+")["options"]("unet_body") == "RUNTIME_ACTIVATION_RESIZE_10_10"


def test_tensorrt_knows_every_tiling(tmp_path):
    known = import_tensorrt_bindings(tmp_path).TilingOptimizationLevel.__members__
    assert {name.lower() for name in known} == set(get_args(Tiling))
