"""Stands in for `cuda.bindings.runtime`, over the fake libcudart.

The real module has CUDA's runtime compiled into it, so no library on the path replaces it. Its enums and structures are
used as they are; each function latentrt calls is declared here once, as the real one is called from Python:
`error, *results = function(*arguments)`.
"""

import ctypes
import sys
import types
from collections.abc import Callable
from typing import Any

from cuda.bindings import runtime as real

POINTER, SIZE, INT, UNSIGNED, FLAGS = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_ulonglong,
)

FUNCTIONS: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    # name: (results, arguments); in C, pointers to the results come first
    "cudaGetDeviceCount": ((INT,), ()),
    "cudaGetDevice": ((INT,), ()),
    "cudaSetDevice": ((), (INT,)),
    "cudaDriverGetVersion": ((INT,), ()),
    "cudaRuntimeGetVersion": ((INT,), ()),
    "cudaDeviceSynchronize": ((), ()),
    "cudaGetLastError": ((), ()),
    "cudaStreamCreateWithFlags": ((POINTER,), (UNSIGNED,)),
    "cudaStreamDestroy": ((), (POINTER,)),
    "cudaStreamSynchronize": ((), (POINTER,)),
    "cudaStreamWaitEvent": ((), (POINTER, POINTER, UNSIGNED)),
    "cudaEventCreate": ((POINTER,), ()),
    "cudaEventCreateWithFlags": ((POINTER,), (UNSIGNED,)),
    "cudaEventDestroy": ((), (POINTER,)),
    "cudaEventRecord": ((), (POINTER, POINTER)),
    "cudaEventSynchronize": ((), (POINTER,)),
    "cudaMalloc": ((POINTER,), (SIZE,)),
    "cudaFree": ((), (POINTER,)),
    "cudaMallocHost": ((POINTER,), (SIZE,)),
    "cudaFreeHost": ((), (POINTER,)),
    "cudaMemGetInfo": ((SIZE, SIZE), ()),
    "cudaMemcpy": ((), (POINTER, POINTER, SIZE, INT)),
    "cudaMemcpyAsync": ((), (POINTER, POINTER, SIZE, INT, POINTER)),
    "cudaMemsetAsync": ((), (POINTER, INT, SIZE, POINTER)),
    "cudaStreamBeginCapture": ((), (POINTER, INT)),
    "cudaGraphDestroy": ((), (POINTER,)),
    "cudaGraphExecDestroy": ((), (POINTER,)),
    "cudaGraphLaunch": ((), (POINTER, POINTER)),
    # Results last in the list here, first or last in C:
    "cudaEventElapsedTime": ((ctypes.c_float,), (POINTER, POINTER)),
    "cudaGraphInstantiate": ((POINTER,), (POINTER, FLAGS)),
}
RESULT_LAST: dict[str, tuple[type, tuple[type, ...]]] = {
    "cudaStreamEndCapture": (POINTER, (POINTER,)),
    "cudaGraphNodeGetType": (INT, (POINTER,)),
}
COPY_PARAMETERS, SOURCE_OFFSET, TARGET_OFFSET, KIND_OFFSET = 160, 32, 96, 152
"""Bytes of `cudaMemcpy3DParms`, and where its `srcPtr`, `dstPtr` and `kind` stand."""
POINTER_ATTRIBUTES = 96
"""Bytes of `cudaPointerAttributes`, which begins with the type, at least."""


def load() -> ctypes.CDLL:
    """The fake libcudart, found as every other library is."""
    library = ctypes.CDLL("libcudart.so.13")
    if not hasattr(library, "fake_mark"):
        raise RuntimeError("libcudart.so.13 is the real one: put the fake libraries first on LD_LIBRARY_PATH")
    return library


def mark(name: str) -> None:
    """Begin a part of the log."""
    load().fake_mark(name.encode())


def stand_in() -> types.ModuleType:
    """A module to use in place of `cuda.bindings.runtime`."""
    library, module = load(), types.ModuleType("cuda.bindings.runtime")
    for name in dir(real):
        # Enums and flags; a function that is not in the table would reach the real runtime, so it is left out.
        value = getattr(real, name)
        if name.startswith("cuda") and (isinstance(value, type) or not callable(value)):
            setattr(module, name, value)
    for name, (results, arguments) in FUNCTIONS.items():
        setattr(module, name, _function(library, name, results, arguments, results_first=True))
    for name, (result, arguments) in RESULT_LAST.items():
        setattr(module, name, _function(library, name, (result,), arguments, results_first=False))
    setattr(module, "cudaGetDeviceProperties", lambda index: _properties(module, library, index))  # noqa: B010
    setattr(module, "cudaGraphGetNodes", lambda graph, count: _nodes(library, graph, count))  # noqa: B010
    setattr(module, "cudaGraphMemcpyNodeGetParams", lambda node: _copy_parameters(library, node))  # noqa: B010
    setattr(module, "cudaPointerGetAttributes", lambda pointer: _pointer_attributes(library, pointer))  # noqa: B010
    setattr(module, "cudaGetErrorString", lambda error: (real.cudaError_t.cudaSuccess, error.name.encode()))  # noqa: B010
    return module


def install() -> None:
    """Make `import cuda.bindings.runtime` give the stand-in, in this process."""
    import cuda.bindings

    module = stand_in()
    sys.modules["cuda.bindings.runtime"] = module
    setattr(cuda.bindings, "runtime", module)  # noqa: B010


def _function(
    library: ctypes.CDLL, name: str, results: tuple[type, ...], types_: tuple[type, ...], results_first: bool
) -> Callable[..., Any]:
    function = getattr(library, name)
    function.restype = INT

    def call(*values: Any) -> tuple[Any, ...]:
        out = [result() for result in results]
        pointers = [ctypes.byref(one) for one in out]
        arguments = [kind(int(value)) for kind, value in zip(types_, values, strict=True)]
        error = function(*pointers, *arguments) if results_first else function(*arguments, *pointers)
        return real.cudaError_t(error), *(one.value for one in out)

    return call


def _nodes(library: ctypes.CDLL, graph: int, count: int) -> tuple[Any, list[int], int]:
    nodes, found = (POINTER * max(count, 1))(), SIZE(count)
    error = library.cudaGraphGetNodes(POINTER(graph), nodes if count else None, ctypes.byref(found))
    return real.cudaError_t(error), list(nodes[:count]), found.value


def _copy_parameters(library: ctypes.CDLL, node: int) -> tuple[Any, Any]:
    parameters = ctypes.create_string_buffer(COPY_PARAMETERS)
    error = library.cudaGraphMemcpyNodeGetParams(POINTER(node), parameters)
    source, target = (
        types.SimpleNamespace(ptr=POINTER.from_buffer(parameters, offset).value or 0)
        for offset in (SOURCE_OFFSET, TARGET_OFFSET)
    )
    kind = real.cudaMemcpyKind(INT.from_buffer(parameters, KIND_OFFSET).value)
    return real.cudaError_t(error), types.SimpleNamespace(kind=kind, srcPtr=source, dstPtr=target)


def _pointer_attributes(library: ctypes.CDLL, pointer: int) -> tuple[Any, Any]:
    attributes = ctypes.create_string_buffer(POINTER_ATTRIBUTES)
    error = library.cudaPointerGetAttributes(attributes, POINTER(pointer))
    kind = real.cudaMemoryType(INT.from_buffer(attributes).value)
    return real.cudaError_t(error), types.SimpleNamespace(type=kind)


def _properties(module: types.ModuleType, library: ctypes.CDLL, index: int) -> tuple[Any, Any]:
    """What latentrt reads of a device: its name and compute capability."""
    attributes = real.cudaDeviceAttr
    answers = []
    for attribute in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor):
        value = INT()
        library.cudaDeviceGetAttribute(ctypes.byref(value), INT(int(attribute)), INT(index))
        answers.append(value.value)
    _, free_and_total = None, module.cudaMemGetInfo()
    found = types.SimpleNamespace(
        name=b"fake device", major=answers[0], minor=answers[1], totalGlobalMem=free_and_total[2]
    )
    return real.cudaError_t.cudaSuccess, found
