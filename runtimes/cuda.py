"""The few calls of CUDA's runtime library that a runtime on a GPU needs, without a package that wraps them.

A bare JetPack has libcudart and neither pycuda nor cuda-python. The signatures are those of NVIDIA's `cuda_runtime_api.h`
(12.6: https://docs.nvidia.com/cuda/archive/12.6.0/cuda-runtime-api/), the numbers those of its `driver_types.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fleetfit.core.errors import FleetfitError, InvalidModel, UnsupportedHere

_INT, _SIZE, _POINTER = ctypes.POINTER(c_int), ctypes.POINTER(c_size_t), ctypes.POINTER(c_void_p)
SIGNATURES: Final[Mapping[str, tuple[Any, ...]]] = {
    "cudaGetDeviceCount": (_INT,),
    "cudaDeviceGetAttribute": (_INT, c_int, c_int),
    "cudaRuntimeGetVersion": (_INT,),
    "cudaMemGetInfo": (_SIZE, _SIZE),
    "cudaMalloc": (_POINTER, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (_POINTER, c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreate": (_POINTER,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
}
"""What each call takes; each gives a cudaError_t."""
_TO_DEVICE: Final = 1
_TO_HOST: Final = 2
_MULTIPROCESSORS: Final = 16
_MAJOR: Final = 75
_MINOR: Final = 76
_OUT_OF_MEMORY: Final = 2
# Newest first: what TensorRT was linked with is loaded already, and then found under its own name.
_NAMES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
# JetPack does not tell the loader of this folder on all releases.
_TOOLKIT: Final = Path("/usr/local/cuda/lib64")
_WHEELS: Final = ("nvidia.cu13", "nvidia.cuda_runtime")


class Cuda:
    """CUDA's runtime library on the first GPU. Raises MemoryError where memory is short, InvalidModel where work failed."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, takes in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(takes), c_int
        library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = [c_int], c_char_p

    def require_gpu(self) -> None:
        """Raises UnsupportedHere, with the library's own words, where there is no GPU that works."""
        count = c_int(0)
        code = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if code or count.value < 1:
            said = self._words(code) if code else "no GPU was found"
            raise UnsupportedHere(f"CUDA finds no GPU here: {said}")

    def version(self) -> str:
        """The library's version, as in `12.6`."""
        number = c_int(0)
        self._check(self._library.cudaRuntimeGetVersion(ctypes.byref(number)))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def gpu(self) -> str:
        """The kind of GPU: compute capability and number of multiprocessors, as in `sm_87x8`.

        One module comes with several numbers of multiprocessors, and an engine is tuned to one of them.
        """
        major, minor, count = (self._attribute(which) for which in (_MAJOR, _MINOR, _MULTIPROCESSORS))
        return f"sm_{major}{minor}x{count}"

    def free_memory(self) -> int:
        """Bytes of device memory that are free: on a Jetson, of the memory that it shares with the processor."""
        free, total = c_size_t(0), c_size_t(0)
        self._check(self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device. Nothing is a byte: a null address would be no buffer."""
        return self._pointer(self._library.cudaMalloc, c_size_t(max(size, 1)))

    def free(self, address: int) -> None:
        """Give memory of the device back."""
        self._library.cudaFree(c_void_p(address))

    def allocate_host(self, size: int) -> int:
        """The address of `size` bytes of this process that the GPU can copy from and to by itself."""
        return self._pointer(self._library.cudaMallocHost, c_size_t(max(size, 1)))

    def free_host(self, address: int) -> None:
        """Give what `allocate_host` gave back."""
        self._library.cudaFreeHost(c_void_p(address))

    def create_stream(self) -> int:
        """A queue of work."""
        return self._pointer(self._library.cudaStreamCreate)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a queue."""
        self._library.cudaStreamDestroy(c_void_p(stream))

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes to the device."""
        self._check(self._library.cudaMemcpyAsync(device, host, size, _TO_DEVICE, stream))

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes from the device."""
        self._check(self._library.cudaMemcpyAsync(host, device, size, _TO_HOST, stream))

    def synchronize(self, stream: int) -> None:
        """Wait until all work of the queue is done."""
        self._check(self._library.cudaStreamSynchronize(stream))

    def _attribute(self, which: int) -> int:
        value = c_int(0)
        self._check(self._library.cudaDeviceGetAttribute(ctypes.byref(value), which, 0))
        return value.value

    def _pointer(self, call: Any, *arguments: Any) -> int:
        pointer = c_void_p()
        self._check(call(ctypes.byref(pointer), *arguments))
        return pointer.value or 0

    def _check(self, code: int) -> None:
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"the GPU has no memory left: {self._words(code)}")
        if code:
            raise InvalidModel(f"the build loads but does not run: CUDA stopped with {code}, {self._words(code)}")

    def _words(self, code: int) -> str:
        return (self._library.cudaGetErrorString(code) or b"an unknown error").decode(errors="replace")


def find_cuda() -> Cuda:
    """CUDA's runtime library of this machine: that of the system, else of NVIDIA's wheels. Raises UnsupportedHere."""
    for path in _candidates():
        try:
            return Cuda(open_library(path))
        except (OSError, AttributeError):
            continue
    raise UnsupportedHere(
        f"CUDA's runtime library ({_NAMES[-1]}) is not here; on a Jetson: sudo apt install nvidia-jetpack"
    )


def free_bytes() -> int | None:
    """Bytes of the first GPU's memory that are free; None where CUDA does not tell."""
    try:
        return find_cuda().free_memory()
    except (FleetfitError, MemoryError):
        return None


def open_library(path: str) -> Any:
    """A shared library, by a name that the loader knows or by its path. Raises OSError."""
    return ctypes.CDLL(path)


def _candidates() -> Iterator[str]:
    yield from _NAMES
    yield from (str(_TOOLKIT / name) for name in _NAMES)
    for package in _WHEELS:
        try:
            found = find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (found.submodule_search_locations or []) if found else []:
            yield from map(str, sorted(Path(folder, "lib").glob("libcudart.so.*")))
