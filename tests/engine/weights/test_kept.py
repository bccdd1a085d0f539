from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import WeightChannelError
from engine.records.manifest import Kept
from engine.records.version import PolicyVersion
from engine.weights.kept import keep, kept_in, read_kept


def weights(value: float) -> dict[str, torch.Tensor]:
    head = torch.full((3, 2), value)
    return {"head": head, "tied": head, "other": torch.arange(4.0)[::2]}


def test_what_is_kept_is_read_again_in_the_type_that_generators_receive(tmp_path: Path) -> None:
    keep(tmp_path / "made", weights(1.5), torch.bfloat16, PolicyVersion(0, 4))
    keep(tmp_path / "made", weights(2.5), torch.bfloat16, PolicyVersion(0, 12))
    found = kept_in(tmp_path / "made")
    assert [kept.version for kept in found] == [PolicyVersion(0, 4), PolicyVersion(0, 12)]
    staged = read_kept(found[1])
    assert staged.version == PolicyVersion(0, 12)
    for name, tensor in weights(2.5).items():
        assert torch.equal(staged.tensors[name], tensor.bfloat16())


def test_a_later_life_replaces_what_an_earlier_one_kept_of_the_same_update(tmp_path: Path) -> None:
    keep(tmp_path, weights(1.0), torch.float32, PolicyVersion(0, 4))
    keep(tmp_path, weights(1.0), torch.float32, PolicyVersion(0, 14))
    keep(tmp_path, weights(2.0), torch.float32, PolicyVersion(1, 4))
    assert [kept.version for kept in kept_in(tmp_path)] == [PolicyVersion(1, 4), PolicyVersion(0, 14)]


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    assert kept_in(tmp_path / "missing") == []


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, weights(1.0), torch.float32, PolicyVersion(0, 4))
    [kept] = kept_in(tmp_path)
    data = bytearray(Path(kept.path).read_bytes())
    data[-1] ^= 1
    Path(kept.path).write_bytes(data)
    with pytest.raises(WeightChannelError, match="is damaged: its digest is"):
        read_kept(kept)


@pytest.mark.parametrize("content", [None, b"", b"nothing like it"])
def test_what_is_missing_or_cut_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "0.4.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightChannelError, match=r"version 0\.4 cannot be read again"):
        read_kept(Kept(PolicyVersion(0, 4), str(file)))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightChannelError, match=r"evaluation\.deferred=false"):
        keep(tmp_path / "file" / "below", weights(1.0), torch.float32, PolicyVersion(0, 4))
