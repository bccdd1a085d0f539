import torch

from engine.weights.staging import StagingPool


def test_bytes_and_tensor_are_one_memory():
    lease, memory = StagingPool().lend(64)
    lease[3] = 7
    assert (memory.dtype, memory.shape) == (torch.uint8, (64,))
    assert memory[3] == 7


def test_memory_is_lent_again_once_its_last_view_is_gone():
    pool = StagingPool()
    first = pool.lend(64)[1]
    place, view = first.data_ptr(), first[8:16]
    del first
    second = pool.lend(64)[1]
    assert second.data_ptr() != place
    del view
    assert pool.lend(64)[1].data_ptr() == place
    assert len(pool) == 2


def test_another_size_is_other_memory_and_what_is_free_is_let_go():
    pool = StagingPool()
    pool.lend(64)
    assert pool.lend(128)[1].numel() == 128
    assert len(pool) == 1
    pool.clear()
    assert len(pool) == 0
