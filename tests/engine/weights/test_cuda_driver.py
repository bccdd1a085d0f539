"""The calls to the driver, against a driver that writes down what it is asked."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from engine.errors import WeightChannelError
from engine.weights import cuda_driver
from engine.weights.cuda_driver import CudaDriver

GPU = torch.cuda.is_available()


class Library:
    """Answers like libcuda, with addresses that say what was called."""

    def __init__(self):
        self.calls, self.status, self.full = [], 0, 0

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name == "cuMemAlloc_v2":
                if self.full:
                    self.full -= 1
                    return 2
                arguments[0]._obj.value = 0x1000
            elif name == "cuIpcGetMemHandle":
                ctypes.memmove(ctypes.addressof(arguments[0]._obj), bytes(range(64)), 64)
            elif name == "cuIpcOpenMemHandle_v2":
                arguments[0]._obj.value = 0x2000
            elif name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of memory"
                return 0
            return self.status

        return call


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    return library


def test_it_enters_the_context_of_its_device(library):
    driver = CudaDriver()
    assert [name for name, _ in library.calls] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert library.calls[1][1][1].value == 3
    assert (driver.device, driver.identity) == (torch.device("cuda", 3), "GPU-1")


def test_every_call_has_its_arguments(library):
    driver = CudaDriver()
    library.calls.clear()
    assert driver.allocate(2**33) == 0x1000
    assert driver.handle(0x1000) == bytes(range(64))
    assert driver.open(bytes(range(64))) == 0x2000
    driver.shut(0x2000)
    driver.free(0x1000)
    names = [name for name, _ in library.calls]
    assert names[::2] == ["cuCtxSetCurrent"] * 5
    assert names[1::2] == ["cuMemAlloc_v2", "cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle",
                           "cuMemFree_v2"]
    allocate, handle, opened, shut, free = (arguments for _, arguments in library.calls[1::2])
    assert allocate[1].value == 2**33
    assert handle[1].value == free[0].value == 0x1000
    assert (bytes(opened[1]), opened[2].value) == (bytes(range(64)), 1)
    assert shut[0].value == 0x2000
    assert ctypes.sizeof(opened[1]) == 64


def test_a_failure_is_named(library):
    driver = CudaDriver()
    library.status = 201
    with pytest.raises(WeightChannelError, match=r"cuCtxSetCurrent on cuda:3: .* \(201\); in a container"):
        driver.handle(1)


def test_memory_that_torch_only_keeps_is_asked_for_before_a_device_is_called_full(library, monkeypatch):
    driver, emptied = CudaDriver(), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    library.full = 1
    assert driver.allocate(2**33) == 0x1000
    assert emptied == [True]
    library.full = 2
    with pytest.raises(WeightChannelError, match=r"cuMemAlloc_v2 on cuda:3: out of memory \(2\); leave it more memory"):
        driver.allocate(2**33)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WeightChannelError, match="needs a GPU"):
        CudaDriver()


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_a_piece_of_a_gpu_is_memory_that_torch_can_use():
    driver = CudaDriver()
    address = driver.allocate(2**20)
    view = driver.view(address, 2**20)
    view.fill_(7)
    driver.synchronize()
    assert int(view.sum()) == 7 * 2**20
    assert len(driver.handle(address)) == 64
    del view
    driver.free(address)
