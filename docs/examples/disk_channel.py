"""A weight channel of your own: one file a version, on a disk that every machine mounts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from engine.errors import WeightChannelError
from engine.records.manifest import Manifest
from engine.weights import layout


class DiskSender:
    """See engine.weights.channel.WeightSender for what each of these promises."""

    def __init__(self, config, run_id, dtype):
        self._mib, self._dtype, self._files = config.bucket_mib, dtype, {}
        self._name = f"{config.folder}/perilune-{run_id}"

    def publish(self, tensors, version):
        """Write the bytes that the layout plans, then say where they are and what proves them whole."""
        entries = layout.plan_entries(tensors, self._dtype)
        memory = torch.empty(layout.total_bytes(entries), dtype=torch.uint8)
        buckets = layout.write_buckets(entries, tensors, memory, self._mib)
        self._files[version] = path = Path(f"{self._name}-{version}")
        memory.numpy().tofile(path)
        for late in list(self._files)[:-2]:
            self.retire(late)
        return Manifest(version, entries, buckets, str(path), "disk", layout.version_digest(buckets))

    def retire(self, version):
        """Take one version away; it may be gone."""
        self._files.pop(version, Path("none")).unlink(missing_ok=True)

    def close(self):
        """Leave nothing behind."""
        for version in list(self._files):
            self.retire(version)


class DiskReceiver:
    """See engine.weights.channel.WeightReceiver."""

    def receive(self, manifest):
        """Read, verify the very bytes that are served, and view them as tensors."""
        layout.check_manifest(manifest)
        try:
            memory = torch.from_numpy(np.fromfile(manifest.location, np.uint8))
        except FileNotFoundError as error:
            raise WeightChannelError(f"version {manifest.version} is gone: {error}") from error
        ranges = [(bucket.offset, bucket.num_bytes) for bucket in manifest.buckets]
        if layout.range_digests(memory, ranges) != [bucket.digest for bucket in manifest.buckets]:
            raise WeightChannelError(f"version {manifest.version}: the bytes are refused, publish it again")
        tensors = layout.staged_tensors(manifest, memory)
        return layout.StagedWeights(manifest.version, manifest.digest, tensors)

    def close(self):
        """Nothing is held."""


channel = SimpleNamespace(sender=DiskSender, receiver=lambda config, run_id: DiskReceiver())
"""What ``weights.path=docs.examples.disk_channel.channel`` names."""
