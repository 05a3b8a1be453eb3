"""DLPack capsules for memory that no array library owns. Layout: DLPack 0.8, `dlpack.h`, struct `DLManagedTensor`."""

import ctypes
from typing import Any

import numpy as np

HOST_DEVICE, CUDA_DEVICE = 1, 2
TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""numpy dtype kind -> DLPack type code."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)

_NAME = b"dltensor"
_lent: dict[int, tuple[Any, ...]] = {}
"""Address of each lent `DLManagedTensor` -> the objects that must live as long as it does."""


def make_capsule(
    owner: Any, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int]
) -> Any:
    """A `dltensor` capsule over contiguous memory at `pointer`; `owner` lives until the consumer lets go of it."""
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    bits = 8 * dtype.itemsize
    tensor = _Tensor(pointer, *device, len(shape), TYPE_CODES[dtype.kind], bits, 1, lengths, None, 0)
    managed = _ManagedTensor(tensor, None, _deleter)
    address = ctypes.addressof(managed)
    _lent[address] = (managed, lengths, owner)
    return _new(address, _NAME, _destructor)


def _give_back(managed: Any) -> None:
    """Called by the consumer when it is done."""
    _lent.pop(ctypes.addressof(managed.contents), None)


def _drop_capsule(capsule: int) -> None:
    """Called when a capsule dies; it still has its name if nobody consumed it."""
    if _is_valid(capsule, _NAME):
        _lent.pop(_get(capsule, _NAME), None)


_deleter = _Deleter(_give_back)
_destructor = _Destructor(_drop_capsule)
