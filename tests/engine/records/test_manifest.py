from __future__ import annotations

from engine.records.manifest import Bucket, Manifest
from engine.records.version import PolicyVersion


def test_bytes_are_those_of_all_buckets() -> None:
    buckets = (Bucket(0, 64, "a"), Bucket(64, 10, "b"))
    assert Manifest(PolicyVersion(0, 1), (), buckets, "here", "shared_memory", "c").num_bytes == 74
    assert Manifest(PolicyVersion(0, 1), (), (), "here", "shared_memory", "c").num_bytes == 0
