import threading

import pytest
import torch

from engine.parallel import overwrite, share


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_the_setting_stays(threads):
    assert share(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert torch.get_num_threads() == threads
    assert share(str, []) == []


def test_as_many_work_at_once_as_torch_may_use(threads):
    together = threading.Barrier(threads)
    assert share(lambda item: together.wait(timeout=60) >= 0, range(2 * threads)) == [True] * (2 * threads)


def test_workers_compute_alone(threads):
    assert share(lambda item: torch.get_num_threads(), range(4)) == [1] * 4


def test_an_error_reaches_the_caller(threads):
    def fail(item):
        raise KeyError(item)

    with pytest.raises(KeyError, match="3"):
        share(fail, [3, 4])
    assert torch.get_num_threads() == threads


def test_overwrite_copies_whatever_lies_how():
    wide = torch.arange(12.0).view(3, 4)
    for source in (wide, wide.t().contiguous().t(), wide.bfloat16(), wide[:, ::2].repeat(1, 2)):
        target = torch.full((3, 4), -1.0)
        overwrite(target, source)
        assert torch.equal(target, source.float())
    strided = torch.zeros(3, 8)
    overwrite(strided[:, ::2], wide)
    assert torch.equal(strided[:, ::2], wide)
    assert not strided[:, 1::2].any()
