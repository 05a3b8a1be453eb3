"""Equivalent forms of one graph. Where several suit a device, a trial on the device decides which is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from latentrt.engine.graph import link_data
from latentrt.engine.passes import ON_CUDA, ON_THE_CPU, Pass, apply
from latentrt.engine.passes.gated_gelu import fuse_gated_gelu
from latentrt.engine.passes.layer_norm_groups import use_layer_norm
from latentrt.engine.passes.merged_products import merge_gemms
from latentrt.engine.passes.skip_layer_norm import fuse_bias_add, fuse_skip_layer_norm


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a graph: the passes it goes through, and options of the provider that optimises it.

    The options change the layout of convolutions, so they make no difference to a graph without any.
    """

    name: str
    passes: Sequence[Pass] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    def write(self, file: Path, folder: Path) -> Path | None:
        """Write a graph in this form to `folder`, its weights linked; None if nothing would change."""
        if not self.passes and not self.options:
            return file
        model = ir.load(file)
        changed = apply(self.passes, model, file.stem)
        convolves = any(node.op_type == "Conv" for node in model.graph)
        if not convolves if self.options else not changed:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        ir.save(model, folder / file.name)
        link_data(model, file.parent, folder)
        return folder / file.name


AS_EXPORTED = Form("as exported")
CHANNELS_LAST = {"prefer_nhwc": "1"}
LAYER_NORMS = (*ON_CUDA, fuse_gated_gelu, fuse_skip_layer_norm, fuse_bias_add, merge_gemms, use_layer_norm)

FORMS: Mapping[str, Sequence[Form]] = {
    "cpu": (Form("instance norms", ON_THE_CPU),),
    "cuda": (Form("layer norms", LAYER_NORMS), Form("layer norms, channels last", LAYER_NORMS, CHANNELS_LAST)),
}
"""Forms by device of ONNX Runtime. On the CPU, one form was the fastest wherever it was measured."""


def forms_of(device: str, file: Path, folder: Path) -> list[tuple[Form, Path]]:
    """The forms of a graph for this device, each with its file; the exported file if the first form does not differ."""
    written = [(form, form.write(file, folder / str(number))) for number, form in enumerate(FORMS[device])]
    found = [(form, made) for form, made in written if made is not None]
    return found if written[0][1] is not None else [(AS_EXPORTED, file), *found]
