"""The stand-ins themselves: they refuse what the real classes and CUDA's real bindings do not have."""

import numpy as np
import pytest
from cuda_stand_in import StandInCuda
from tensorrt_stand_ins import StandInModule, check_call

from latentrt.runtime.backends import cuda, cuda_memory
from latentrt.runtime.backends.cuda_graph import Graph


def test_stand_ins_refuse_what_the_classes_do_not_have() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    context = StandInModule(module, {}).stand_in("IExecutionContext")
    with pytest.raises(AttributeError, match="execute_async_v4"):
        context.execute_async_v4(1)
    with pytest.raises(TypeError, match=r"execute_async_v3\(\): fits none"):
        context.execute_async_v3()
    with pytest.raises(AttributeError, match="engine cannot be set"):
        context.engine = None
    text = "f(self: C, a: list[int, str], b: E = <E.X: 0>) -> bool"
    assert check_call("C.f", text, (1,), {"b": 2}) == text
    with pytest.raises(TypeError):
        check_call("C.f", text, (1,), {"c": 2})


def test_every_cuda_call_exists(gpu: StandInCuda) -> None:
    """Against cuda-python where it is installed: it imports without a driver."""
    real = pytest.importorskip("cuda.bindings.runtime")
    cuda.describe_device(0)
    stream = cuda.Stream(0)
    event = stream.mark()
    buffer = cuda_memory.DeviceBuffer((2, 3), np.float32, stream)
    buffer.copy_from(buffer)
    buffer.numpy()
    buffer.fetch()()
    for kind in ("cudaMemcpyDeviceToDevice", "cudaMemcpyDefault"):
        graph = Graph(stream, lambda kind=kind: cuda_memory.copy(stream, buffer.pointer, buffer.pointer, 24, kind))
        graph.launch()
    del graph
    event.record()
    event.wait()
    assert event.seconds_since(event) == 1.5
    buffer.close()
    stream.close()
    del event
    for name, *arguments in gpu.calls:
        line = (getattr(real, name).__doc__ or "").split("\n")[0]
        assert len(arguments) == len([part for part in line[line.index("(") + 1 : -1].split(",") if part]), line
    for enumeration in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaMemoryType", "cudaGraphNodeType"):
        for kind in getattr(gpu, enumeration):
            assert hasattr(getattr(real, enumeration), kind.name)
    assert real.cudaError_t.cudaSuccess == 0
    assert {"name", "major", "minor"} <= set(dir(real.cudaDeviceProp))
    assert {"kind", "srcPtr", "dstPtr"} <= set(dir(real.cudaMemcpy3DParms))
    assert "ptr" in dir(real.cudaPitchedPtr)
    assert "type" in dir(real.cudaPointerAttributes)
