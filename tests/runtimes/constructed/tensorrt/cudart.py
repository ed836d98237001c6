"""A constructed libcudart: the calls that fleetfit/runtimes/cuda.py declares, on memory of the process.

The C types here are those of NVIDIA's cuda_runtime_api.h, declared apart from the adapter's.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t, c_void_p

_HELD: dict[int, ctypes.Array] = {}
FREE = 8 << 30


def _give(pointer, size):
    if size > FREE:
        return 2
    memory = ctypes.create_string_buffer(size)
    _HELD[ctypes.addressof(memory)] = memory
    ctypes.cast(pointer, ctypes.POINTER(c_void_p))[0] = ctypes.addressof(memory)
    return 0


def _take(address):
    del _HELD[address]
    return 0


def _count(pointer):
    return _set(pointer, int(os.environ.get("CONSTRUCTED_GPUS", "1")))


def _set(pointer, value):
    ctypes.cast(pointer, ctypes.POINTER(c_int))[0] = value
    return 0


def _memory(free, total):
    ctypes.cast(free, ctypes.POINTER(c_size_t))[0] = FREE - sum(ctypes.sizeof(one) for one in _HELD.values())
    ctypes.cast(total, ctypes.POINTER(c_size_t))[0] = 2 * FREE
    return 0


def _copy(target, source, count, kind, stream):
    assert kind in (1, 2) and stream
    ctypes.memmove(target, source, count)
    return 0


def held() -> int:
    """How many allocations and streams there are."""
    return len(_HELD)


class Library:
    def __init__(self) -> None:
        pointer = c_void_p
        self.cudaGetDeviceCount = CFUNCTYPE(c_int, pointer)(_count)
        self.cudaDeviceGetAttribute = CFUNCTYPE(c_int, pointer, c_int, c_int)(
            lambda value, attribute, device: _set(value, {75: 8, 76: 7, 16: 8}[attribute])
        )
        self.cudaRuntimeGetVersion = CFUNCTYPE(c_int, pointer)(
            lambda version: _set(version, int(os.environ.get("CONSTRUCTED_CUDA", "12060")))
        )
        self.cudaMemGetInfo = CFUNCTYPE(c_int, pointer, pointer)(_memory)
        self.cudaMalloc = self.cudaMallocHost = CFUNCTYPE(c_int, pointer, c_size_t)(_give)
        self.cudaFree = self.cudaFreeHost = CFUNCTYPE(c_int, pointer)(_take)
        self.cudaMemcpyAsync = CFUNCTYPE(c_int, pointer, pointer, c_size_t, c_int, pointer)(_copy)
        self.cudaStreamCreate = CFUNCTYPE(c_int, pointer)(lambda stream: _give(stream, 8))
        self.cudaStreamDestroy = CFUNCTYPE(c_int, pointer)(_take)
        self.cudaStreamSynchronize = CFUNCTYPE(c_int, pointer)(lambda stream: 0)
        self.cudaGetErrorString = CFUNCTYPE(c_char_p, c_int)(lambda code: b"a constructed error")
