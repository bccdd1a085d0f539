"""Device memory as files: what one process allocates, another can open by its handle."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch


class FileMemory:
    """``calls`` says what was asked of it, in order."""

    def __init__(self, folder: Path, identity: str = "card") -> None:
        self.device, self.identity, self.folder = torch.device("cpu"), identity, folder
        self.calls: list[str] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._paths: dict[int, Path] = {}

    def allocate(self, num_bytes):
        self.calls.append("allocate")
        number = len(self.calls)
        path = self.folder / f"piece-{os.getpid()}-{id(self)}-{number}"
        path.write_bytes(bytes(num_bytes))
        return self._map(number, path)

    def free(self, address):
        self.calls.append("free")
        self._paths.pop(address).unlink()
        del self._maps[address]

    def handle(self, address):
        return str(self._paths[address]).encode()

    def open(self, handle):
        self.calls.append("open")
        return self._map(len(self.calls), Path(handle.decode()))

    def shut(self, address):
        self.calls.append("shut")
        del self._maps[address], self._paths[address]

    def view(self, address, num_bytes):
        return torch.frombuffer(self._maps[address], dtype=torch.uint8)[:num_bytes]

    def synchronize(self):
        self.calls.append("synchronize")

    def _map(self, address, path):
        with path.open("r+b") as file:
            self._maps[address], self._paths[address] = mmap.mmap(file.fileno(), 0), path
        return address
