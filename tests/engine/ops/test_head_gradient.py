from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.ops import head_gradient as module
from engine.ops.head_gradient import head_gradient_reference, logit_gradient_reference
from engine.ops.token_logprob import token_logprob


def problem(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    tokens, vocabulary, width = shape
    hidden = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * 3 / width**0.5).to(dtype)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5


def test_logit_gradient_equals_its_reference(level: str) -> None:
    hidden, weight, target, scale = problem((33, 151, 96), torch.float32)
    logprob, entropy, lse = token_logprob(hidden, weight, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *torch.randn(3, 33)])
    rows = weight[37:].contiguous()
    got = torch.ops.perilune.logit_gradient(hidden, rows, target, statistics, 37)
    expected = logit_gradient_reference(hidden, rows, target, statistics, 37)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


def test_head_gradient_agrees_with_its_reference(level: str) -> None:
    hidden, weight, target, scale = problem((45, 1300, 96), torch.float32)
    logprob, entropy, lse = token_logprob(hidden, weight, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *torch.randn(3, 45)])
    exact = head_gradient_reference(hidden, weight, target, statistics, None, True, True)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        got = torch.ops.perilune.head_gradient(
            hidden.to(dtype), weight.to(dtype), target, statistics, None, True, True
        )
        for ours, expected in zip(got, exact, strict=True):
            assert (ours.float() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_opcheck(dtype: torch.dtype) -> None:
    hidden, weight, target, _ = problem((5, 40, 32), dtype)
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    statistics, rows = torch.rand(7, 5), torch.tensor([4, 0, 0, 4, 2])
    torch.library.opcheck(
        torch.ops.perilune.logit_gradient.default, (hidden, weight[7:], target, statistics, 7), **tolerance
    )
    for chosen in (None, rows):
        torch.library.opcheck(
            torch.ops.perilune.head_gradient.default,
            (hidden, weight, target, statistics, chosen, True, True),
            **tolerance,
        )


def statistics_of(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    logprob, entropy, lse = token_logprob(hidden, weight, target, scale, rows=rows)
    return torch.stack([scale, lse, entropy, logprob, *torch.randn(3, len(rows))])


def test_reference_adds_rows_that_are_listed_twice(cpu_level: str) -> None:
    hidden, weight, target, scale = problem((6, 151, 32), torch.float32)
    rows = torch.tensor([4, 1, 4, 4, 0, 1])
    arguments = hidden, weight, target, statistics_of(hidden, weight, target, scale, rows), rows, True, True
    for ours, expected in zip(
        head_gradient_reference(*arguments), torch.ops.perilune.head_gradient(*arguments), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_rows_out_of_range_write_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU; what the head would take of them is not known, and says so."""
    hidden, weight, target, scale = problem((4, 151, 32), torch.float32)
    rows, target, scale = torch.tensor([3, -1, 4, 0, 1 << 40]), torch.randint(0, 151, (5,)), torch.rand(5) + 0.5
    there = [0, 3]
    statistics = torch.zeros(7, 5)
    statistics[:, there] = statistics_of(hidden, weight, target[there], scale[there], rows[there])
    with pytest.raises(ValueError, match=r"rows: expected values in 0\.\.3"):
        head_gradient_reference(hidden, weight, target, statistics, rows, True, True)
    monkeypatch.setattr(module, "_refuse", lambda *_: None)
    d_hidden, d_weight = head_gradient_reference(hidden, weight, target, statistics, rows, True, True)
    exact, _ = head_gradient_reference(hidden, weight, target[there], statistics[:, there], rows[there], True, True)
    torch.testing.assert_close(d_hidden, exact)
    assert bool(d_weight.isnan().all())


LARGE = """
import resource, sys
from pathlib import Path
import torch
from engine.ops import extension, head_gradient
extension.force_level(sys.argv[1])
torch.set_num_threads(2)
width = 1 << 20
hidden, weight = torch.zeros(1, width, dtype=torch.bfloat16), torch.zeros(32, width, dtype=torch.bfloat16)
arguments = hidden, weight, torch.zeros(1, dtype=torch.int64), torch.zeros(7, 1), None, True, False
torch.ops.perilune.head_gradient(hidden[:, :64], weight[:, :64].contiguous(), *arguments[2:])  # the threads are there
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (900 << 20),) * 2)
try:
    torch.ops.perilune.head_gradient(*arguments)
except (MemoryError, RuntimeError) as error:
    print("refused", error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_is_not_there_is_an_error(cpu_level: str) -> None:
    """Each thread asks for a gigabyte of its own; to run out among the threads would end the process."""
    if cpu_level not in ("avx512bf16", "amx"):
        pytest.skip("the library's products serve")
    command = [sys.executable, "-c", LARGE, cpu_level]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("refused"), ended.stdout


def test_no_hidden_states_have_no_rows() -> None:
    with pytest.raises(ValueError, match=r"rows: expected none of 0 hidden states, got \[1\] int64"):
        module.rows_inside(torch.zeros(1, dtype=torch.int64), torch.zeros(0, 8))
    inside, there = module.rows_inside(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8))
    assert inside.shape == there.shape == (0,)
