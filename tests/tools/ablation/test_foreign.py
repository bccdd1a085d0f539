"""Who used the machine, by a kernel that is written down here."""

import os

import pytest

from tools.ablation.foreign import ForeignWork


@pytest.fixture
def kernel(tmp_path):
    """Write ticks of the cores and processes: number -> (parent, ticks, start)."""
    def tell(busy, idle, processes):
        # user nice system idle iowait irq softirq steal guest guest_nice
        (tmp_path / "stat").write_text(f"cpu  {busy - 3} 1 1 {idle - 1} 1 0 0 1 77 0\ncpu0 1 1 1 1 1\n")
        for folder in tmp_path.glob("[0-9]*"):
            (folder / "stat").unlink(missing_ok=True)
        for pid, (parent, ticks, start) in processes.items():
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            rest = " ".join(["0"] * 9)
            (tmp_path / str(pid) / "stat").write_text(
                f"{pid} (a (b) c) S {parent} {rest} {ticks - 1} 1 0 0 0 0 0 0 {start} 0\n")
        return tmp_path

    return tell


def test_what_descends_from_the_ablation_is_not_foreign(kernel):
    proc = kernel(1000, 500, {10: (1, 40, 5), 20: (1, 900, 6)})
    work = ForeignWork(10, proc)
    assert work.share is None, "no time has passed"
    kernel(1100, 600, {10: (1, 45, 5), 11: (10, 30, 50), 12: (11, 25, 51), 20: (1, 940, 6)})
    work.look()
    assert work.share == pytest.approx((100 - 5 - 30 - 25) / 200)


def test_a_process_that_lost_its_parent_or_ended_counts_as_before_and_a_number_may_come_again(kernel):
    proc = kernel(1000, 500, {10: (1, 40, 5)})
    work = ForeignWork(10, proc)
    kernel(1050, 550, {10: (1, 40, 5), 11: (10, 10, 50), 12: (11, 20, 51)})
    work.look()
    kernel(1200, 600, {10: (1, 40, 5), 12: (1, 90, 51), 11: (1, 60, 70)})
    work.look()
    assert work.share == pytest.approx((200 - 10 - 90) / 300)


def test_it_reads_what_this_kernel_tells():
    work = ForeignWork()
    for _ in range(1000):
        os.getppid()
    work.look()
    assert work.share is None or 0.0 <= work.share <= 1.0
    assert any(pid == os.getpid() for pid, _ in work._own)
