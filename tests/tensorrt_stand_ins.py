"""Stand-ins for TensorRT's objects, made from its real classes, so that code which needs a GPU runs without one.

A stand-in has the attributes and methods of its class and no others. A call must fit a signature that pybind11 wrote
into the method's docstring, and gives a stand-in of the class that the signature returns.
"""

import ctypes
import importlib.util
import inspect
import re
import shutil
import subprocess
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def import_tensorrt_bindings(folder: Path) -> ModuleType:
    """All classes of full TensorRT, without its libraries of several gigabytes: only looked at, never called.

    `tensorrt-cu13-bindings` (1 MB) links against three libraries, of which empty ones are compiled here.
    """
    compiler = shutil.which("cc")
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or compiler is None:
        pytest.skip("needs tensorrt-cu13-bindings and a C compiler")
    major = re.search(rb"libnvinfer\.so\.(\d+)", (Path(spec.origin or "").parent / "tensorrt.so").read_bytes())
    assert major is not None
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        name = f"{library}.so.{major[1].decode()}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source], check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


class StandInModule:
    """A TensorRT module whose classes make stand-ins; `used` collects every attribute that is read, set or called.

    `given` holds the last value that each property was set to, `gone` the classes of destroyed stand-ins in order.
    `journal` gets the name of every call, with the arguments that are numbers, texts or tuples, and "~" with the class
    of every destroyed stand-in; give a StandInCuda's `calls` to have both in one order.

    `answers` says what some give: `{"IExecutionContext.get_tensor_shape": lambda name: (1, 2)}` for a method,
    `{"ITensor.name": lambda tag: tag}` for a property, where `tag` is what `stand_in` was given.
    """

    def __init__(self, module: ModuleType, answers: dict[str, Any], journal: list[tuple[Any, ...]] | None = None):
        self.module, self.answers = module, answers
        self.journal: list[tuple[Any, ...]] = [] if journal is None else journal
        self.used: set[str] = set()
        self.given: dict[str, Any] = {}
        self.gone: list[str] = []
        self.__name__, self.__version__ = module.__name__, module.__version__

    def stand_in(self, kind: str, tag: Any = None) -> "StandIn":
        """An object of the named class."""
        return StandIn(self, getattr(self.module, kind), tag)

    def note(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Write down a call; objects among its arguments may die, so they are left out."""
        self.journal.append((name, *(value for value in arguments if isinstance(value, int | str | tuple))))

    def destroyed(self, kind: str) -> None:
        """Note that an object of this class is gone."""
        self.gone.append(kind)
        self.journal.append((f"~{kind}",))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        # Enumerations, and classes that Python code derives from, are used as they are.
        if not isinstance(found, type) or hasattr(found, "__members__") or name in ("ILogger", "IProgressMonitor"):
            return found
        return StandInClass(self, found)


class StandInClass:
    """Calling it checks the constructor's arguments."""

    def __init__(self, owner: StandInModule, kind: type):
        self.owner, self.kind = owner, kind

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        check_call(f"{self.kind.__name__}.__init__", self.kind.__init__.__doc__ or "", arguments, named)
        self.owner.note(self.kind.__name__, arguments)
        return StandIn(self.owner, self.kind)


class StandIn:
    """An object of one class of the module."""

    def __init__(self, owner: StandInModule, kind: type, tag: Any = None):
        for name, value in (("_owner", owner), ("_kind", kind), ("_tag", tag)):
            object.__setattr__(self, name, value)
        weakref.finalize(self, owner.destroyed, kind.__name__)

    def __getattr__(self, name: str) -> Any:
        owner, kind = self._owner, self._kind
        found = inspect.getattr_static(kind, name)  # AttributeError where the class has no such thing
        title = f"{kind.__name__}.{name}"
        owner.used.add(title)
        if isinstance(found, property):
            if title in owner.answers:
                return owner.answers[title](self._tag)
            return returned(owner, (found.fget.__doc__ or "").split("\n")[0])

        def method(*arguments: Any, **named: Any) -> Any:
            signature = check_call(title, found.__doc__ or "", arguments, named)
            owner.note(title, arguments)
            if title in owner.answers:
                return owner.answers[title](*arguments, **named)
            return returned(owner, signature)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # how Python code casts a layer to its own class
            object.__setattr__(self, "_kind", value.kind)
            return
        found = inspect.getattr_static(self._kind, name)
        if not isinstance(found, property) or found.fset is None:
            raise AttributeError(f"{self._kind.__name__}.{name} cannot be set")
        self._owner.used.add(f"{self._kind.__name__}.{name}")
        self._owner.given[f"{self._kind.__name__}.{name}"] = value


def returned(owner: StandInModule, signature: str) -> Any:
    """What a call gives: success, a small number, or a stand-in of the returned class."""
    name = re.split(r"[.:]+", signature.rpartition(" -> ")[2].strip())[-1]
    simple: dict[str, Any] = {"bool": True, "int": 1, "str": "text", "None": None, "": None}
    if name in simple:
        return simple[name]
    kind = getattr(owner.module, name, None)
    return StandIn(owner, kind) if isinstance(kind, type) else None


def check_call(title: str, documentation: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """The signature that fits the arguments; TypeError where none does."""
    name = title.rpartition(".")[2]
    signatures = re.findall(rf"^(?:\d+\. )?({name}\(self.*\) -> .*)$", documentation, re.MULTILINE)
    for signature in signatures:
        try:
            parameters(signature).bind(*arguments, **named)
        except TypeError:
            continue
        return str(signature)
    raise TypeError(f"{title}{(*arguments, *named)}: fits none of {signatures}")


def parameters(signature: str) -> inspect.Signature:
    """The parameters of `name(self: A, b: C[D, E], f: G = <H: 0>) -> R`, without self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") -> ")]
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(inside):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            parts.append(inside[start:position])
            start = position + 1
    parts.append(inside[start:])
    return inspect.Signature(
        [
            inspect.Parameter(
                part.partition(":")[0].strip(),
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if " = " in part else inspect.Parameter.empty,
            )
            for part in parts[1:]
        ]
    )
