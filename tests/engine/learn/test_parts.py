"""Rows of tensors in files of their own, for any number of readers."""

import pytest
import torch

from engine.errors import CheckpointError
from engine.learn.parts import Parts, write_part


def rows_of(tensor, rank, ranks):
    step = -(-len(tensor) // ranks)
    return min(rank * step, len(tensor)), min((rank + 1) * step, len(tensor)), len(tensor)


def write(folder, tensors, ranks, facts=None):
    for rank in range(ranks):
        rows = {name: rows_of(tensor, rank, ranks) for name, tensor in tensors.items()}
        held = {name: tensor[slice(*rows[name][:2])] for name, tensor in tensors.items()}
        write_part(folder, rank, ranks, held, rows, {"steps": 3} if facts is None else facts[rank])


@pytest.fixture
def tensors():
    return {"a": torch.randn(7, 3), "b": torch.randn(2).bfloat16(), "c": torch.randn(5, 2, 2)}


@pytest.mark.parametrize("written", [1, 2, 3])
@pytest.mark.parametrize("read", [1, 2, 4])
def test_any_number_reads_what_any_number_wrote(tmp_path, tensors, written, read):
    write(tmp_path / "state", tensors, written)
    with Parts(tmp_path / "state") as parts:
        assert parts.names == ["a", "b", "c"]
        assert parts.facts == {"steps": 3}
        for name, tensor in tensors.items():
            found = [parts.read(name, rows_of(tensor, rank, read)) for rank in range(read)]
            assert torch.equal(torch.cat(found), tensor)
            assert found[0].dtype is tensor.dtype


def test_a_tensor_of_another_network_is_refused(tmp_path, tensors):
    write(tmp_path, tensors, 2)
    with Parts(tmp_path) as parts:
        with pytest.raises(CheckpointError, match="no tensor 'd' of 3 rows"):
            parts.read("d", (0, 3, 3))
        with pytest.raises(CheckpointError, match="no tensor 'a' of 8 rows"):
            parts.read("a", (0, 4, 8))


def test_what_every_rank_holds_is_read_once_and_what_none_holds_is_named(tmp_path):
    for rank in range(2):
        tensors = {"count": torch.ones(1), "gap": torch.zeros(2)}
        write_part(tmp_path, rank, 2, tensors, {"count": (0, 1, 1), "gap": (3 * rank, 3 * rank + 2, 5)}, {})
    with Parts(tmp_path) as parts:
        assert parts.read("count", (0, 1, 1)).tolist() == [1.0]
        with pytest.raises(CheckpointError, match="lacks row 2 of 'gap'"):
            parts.read("gap", (1, 4, 5))


def test_missing_foreign_and_damaged_parts_are_named(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="nowhere holds no part"):
        Parts(tmp_path / "nowhere")
    write(tmp_path / "mixed", tensors, 2, [{"steps": 3}, {"steps": 4}])
    with pytest.raises(CheckpointError, match="not of one writing by 2 ranks"):
        Parts(tmp_path / "mixed")
    write(tmp_path / "short", tensors, 3)
    (tmp_path / "short" / "part-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 parts .* by 3 ranks"):
        Parts(tmp_path / "short")
    (tmp_path / "short" / "part-00002-of-00003.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="part-00002-of-00003"):
        Parts(tmp_path / "short")


def test_what_cannot_be_written_is_an_error(tmp_path, tensors):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "file" / "state", tensors, 1)
