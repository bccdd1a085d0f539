"""Device memory that another process may open, by the CUDA driver's own calls.

torch's allocator hands out parts of larger pieces, and its handles are for one reader each; a broadcast of weights
wants whole pieces that any number of processes open. The calls and their arguments are those of ``cuda.h``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.errors import WeightChannelError

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1
_OUT_OF_MEMORY = 2


class DeviceMemory(Protocol):
    """What channel ``cuda_ipc`` asks of a device."""

    device: torch.device
    identity: str
    """Names the device beyond this process."""

    def allocate(self, num_bytes: int) -> int:
        """The address of a new piece of memory."""

    def free(self, address: int) -> None:
        """Give a piece back; nobody may have it open."""

    def handle(self, address: int) -> bytes:
        """What another process opens it with."""

    def open(self, handle: bytes) -> int:
        """The address here of another process' piece."""

    def shut(self, address: int) -> None:
        """Let go of an opened piece."""

    def view(self, address: int, num_bytes: int) -> Tensor:
        """[num_bytes] uint8 over a piece; the caller keeps the piece as long as the tensor."""

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * _HANDLE_BYTES),)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Memory as torch takes it over."""

    __cuda_array_interface__: dict[str, Any]


class CudaDriver:
    """See DeviceMemory, for this process' current GPU."""

    def __init__(self) -> None:
        """Bind to the driver and to the context that torch uses.

        Raises:
            WeightChannelError: there is no GPU.
        """
        if not torch.cuda.is_available():
            raise WeightChannelError("weights.channel=cuda_ipc needs a GPU in this process: choose another channel")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.identity = str(torch.cuda.get_device_properties(self.device).uuid)
        self._library = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._do("cuInit", ctypes.c_uint(0))
        self._do("cuDeviceGet", ctypes.byref(device), ctypes.c_int(self.device.index))
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def allocate(self, num_bytes: int) -> int:
        """See DeviceMemory."""
        address = ctypes.c_uint64()
        arguments = ctypes.byref(address), ctypes.c_size_t(num_bytes)
        try:
            self._here("cuMemAlloc_v2", *arguments)
        except WeightChannelError:
            torch.cuda.empty_cache()  # what no tensor uses is torch's until then
            self._here("cuMemAlloc_v2", *arguments)
        return address.value

    def free(self, address: int) -> None:
        """See DeviceMemory."""
        self._here("cuMemFree_v2", ctypes.c_uint64(address))

    def handle(self, address: int) -> bytes:
        """See DeviceMemory."""
        handle = _Handle()
        self._here("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """See DeviceMemory."""
        address = ctypes.c_uint64()
        self._here("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle),
                   ctypes.c_uint(_LAZY_PEER_ACCESS))
        return address.value

    def shut(self, address: int) -> None:
        """See DeviceMemory."""
        self._here("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def view(self, address: int, num_bytes: int) -> Tensor:
        """See DeviceMemory."""
        facts = {"shape": (num_bytes,), "typestr": "|u1", "data": (address, False), "version": 2}
        return torch.as_tensor(_Piece(facts), device=self.device)

    def synchronize(self) -> None:
        """See DeviceMemory."""
        torch.cuda.synchronize(self.device)

    def _here(self, call: str, *arguments: Any) -> None:
        """A call in torch's context, which another thread may not have entered yet."""
        self._do("cuCtxSetCurrent", self._context)
        self._do(call, *arguments)

    def _do(self, call: str, *arguments: Any) -> None:
        status = getattr(self._library, call)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            why = text.value.decode() if text.value else "unknown error"
            remedy = ("leave it more memory, with fewer generator.slots or other actors on other GPUs"
                      if status == _OUT_OF_MEMORY else "in a container, share the host's ipc namespace")
            raise WeightChannelError(
                f"{call} on {self.device}: {why} ({status}); {remedy}, or choose another weights.channel"
            )
