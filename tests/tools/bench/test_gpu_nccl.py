from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.bench.gpu_nccl import reason_of, unique_id

REFUSED = """[rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:93, invalid usage
[rank0]: Last error:
[rank0]: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60
[rank0]:[W1126 ProcessGroupNCCL.cpp:1575] Warning: destroy_process_group() was not called
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (REFUSED, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"),
        ("Traceback\n  File\nTypeError: expected bytes\n", "TypeError: expected bytes"),
        ("Killed\n", "Killed"),
        ("", "no output"),
    ],
)
def test_a_reason_is_one_line(said: str, reason: str) -> None:
    assert reason_of(said) == reason


def test_an_id_has_the_form_that_the_library_makes() -> None:
    made = bytes([1, 200])
    assert unique_id(SimpleNamespace(get_unique_id=lambda: b""), made) == made
    assert unique_id(SimpleNamespace(get_unique_id=lambda: ()), made) == (1, -56)
