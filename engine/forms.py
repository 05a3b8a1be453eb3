"""Forms of one graph that compute the same. Where a device has several, a trial on it decides which is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from latentrt.engine.graph import link_data
from latentrt.engine.passes import ON_THE_CPU, Pass, apply
from latentrt.engine.passes.flat_attention import flatten_attention
from latentrt.engine.passes.fused_group_norm import fuse_group_norm
from latentrt.engine.passes.gated_gelu import fuse_gated_gelu
from latentrt.engine.passes.group_norm import use_instance_norm


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a graph: the passes it goes through, and options of the provider that optimises it.

    The options lay convolutions out in another way; a graph without any has no form of its own by them.
    """

    name: str
    passes: Sequence[Pass] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    def write(self, file: Path, folder: Path) -> Path | None:
        """Write a graph in this form to `folder`, its weights linked; None where that is no other form of it."""
        if not self.passes and not self.options:
            return file
        model = ir.load(file)
        changed = apply(self.passes, model, file.stem)
        convolves = any(node.op_type == "Conv" for node in model.graph)
        if (self.passes and not changed) or (self.options and not convolves):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        ir.save(model, folder / file.name)
        link_data(model, file.parent, folder)
        return folder / file.name


AS_EXPORTED = Form("as exported")
CHANNELS_LAST = {"prefer_nhwc": "1"}
PLAIN = (flatten_attention, fuse_gated_gelu, use_instance_norm)
FUSED = (flatten_attention, fuse_gated_gelu, fuse_group_norm, use_instance_norm)

FORMS: Mapping[str, Sequence[Form]] = {
    "cpu": (Form("instance norms", ON_THE_CPU),),
    "cuda": (
        AS_EXPORTED,
        Form("instance norms", PLAIN),
        Form("instance norms, channels last", PLAIN, CHANNELS_LAST),
        Form("fused group norms", FUSED),
        Form("fused group norms, channels last", FUSED, CHANNELS_LAST),
    ),
}
"""By ONNX Runtime's provider. For the CPU one form was measured to win wherever it was tried."""


def forms_of(device: str, file: Path, folder: Path) -> list[tuple[Form, Path]]:
    """The forms that a graph has on this device, each with its file; as it was exported where it has none."""
    written = [(form, form.write(file, folder / str(number))) for number, form in enumerate(FORMS[device])]
    return [(form, made) for form, made in written if made is not None] or [(AS_EXPORTED, file)]
