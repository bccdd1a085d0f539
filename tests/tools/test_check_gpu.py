from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tools import check_gpu
from tools.bench import gpu_loop
from tools.check_gpu import GRACE_S, LIMIT_S, PARTS, SEEN_S, Part, check, run_part

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{\"answer\": 42}'); print('said'); sys.exit(3)"
LEAVES = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL)
print(left.pid)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"


def test_a_part_that_fails_keeps_what_it_reported() -> None:
    found = run_part(Part((sys.executable, "-c", WRITES), 60, reports=True), 60, os.environ)
    assert (found["ok"], found["returncode"], found["timed_out"]) == (False, 3, False)
    assert found["report"] == {"answer": 42}
    assert found["output"] == "said\n"


def test_output_that_is_no_text_is_kept_as_far_as_it_is() -> None:
    found = run_part(Part((sys.executable, "-c", "import os; os.write(1, b'a\\xffb')"), 60), 60, os.environ)
    assert (found["ok"], found["output"]) == (True, "a\N{REPLACEMENT CHARACTER}b")


def test_the_next_part_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "build", Part((sys.executable, "-c", "raise SystemExit('no nvcc')"), 60))
    monkeypatch.setitem(PARTS, "tests", Part((sys.executable, "-c", "print('fine')"), 60))
    assert not check(tmp_path / "gpu.json", ["build", "tests"], 120)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [found[name]["ok"] for name in ("build", "tests")] == [False, True]
    assert "no nvcc" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["while True: pass", DEAF])
def test_a_late_part_is_ended(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "GRACE_S", 0.5)
    found = run_part(Part((sys.executable, "-c", program), 60), 0.5, os.environ)
    assert (found["ok"], found["timed_out"]) == (False, True)


def test_nothing_outlives_its_part() -> None:
    found = run_part(Part((sys.executable, "-c", LEAVES), 60), 60, os.environ)
    assert found["ok"]
    try:
        left = os.pidfd_open(int(found["output"]))
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(left, select.POLLIN)  # readable once the process has ended
    ended = poll.poll(10_000)
    os.close(left)
    assert ended


def test_a_late_part_has_its_grace_within_the_limit(tmp_path: Path) -> None:
    assert not check(tmp_path / "gpu.json", ["build"], GRACE_S + 9)
    found = json.loads((tmp_path / "gpu.json").read_text())["build"]
    assert found["output"] == "no time was left for this part"


def test_every_part_fits_the_whole() -> None:
    """By what was seen, all parts with the usual runs of the loop end in time, and none meets its own deadline."""
    assert gpu_loop.SEEN_S.keys() == gpu_loop.RUNS.keys()
    starts = {name: gpu_loop.START_S if "cluster=serial" in run else 0.0 for name, run in gpu_loop.RUNS.items()}
    loop = sum(gpu_loop.SEEN_S[name] + starts[name] for name in gpu_loop.USUAL)
    seen = SEEN_S | {"loop": loop}
    assert seen.keys() == PARTS.keys()
    assert sum(seen.values()) + GRACE_S < LIMIT_S < 9 * 60
    assert [name for name, part in PARTS.items() if not seen[name] < part.seconds < LIMIT_S] == []
    assert gpu_loop.GRACE_S < GRACE_S


def test_the_tests_that_need_a_gpu_are_chosen() -> None:
    wanted = {
        "tests/engine/ops/test_policy_gradient.py": "test_what_does_not_fit_is_nan_on_a_gpu",
        "tests/engine/ops/test_packed_rows.py": "test_what_does_not_fit_is_nan_on_a_gpu",
        "tests/engine/ops/test_segments.py": "test_what_does_not_fit_is_nan_on_a_gpu",
        "tests/engine/ops/test_version_mask.py": "test_a_version_from_the_future_is_counted_as_minus_one_on_a_gpu",
        "tests/engine/weights/test_conformance.py": "test_every_type_arrives_bit_for_bit[Nccl]",
        "tests/engine/weights/test_word_digest.py": "test_a_gpu_finds_the_same",
    }
    command = PARTS["tests"].command
    assert [file for file in wanted if not file.startswith(tuple(f"{folder}/" for folder in command[-4:]))] == []
    listed = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-k", command[command.index("-k") + 1],
                             *wanted], cwd=check_gpu.ROOT, capture_output=True, text=True, timeout=300, check=True)
    chosen = listed.stdout.splitlines()
    assert [name for file, test in wanted.items() if (name := f"{file}::{test}") not in chosen] == []


def test_two_ranks_of_nccl_may_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    program = "import os; print(os.environ['NCCL_MULTI_RANK_GPU_ENABLE'])"
    monkeypatch.setitem(PARTS, "tests", Part((sys.executable, "-c", program), 60))
    assert check(tmp_path / "gpu.json", ["tests"], 120)
    assert json.loads((tmp_path / "gpu.json").read_text())["tests"]["output"] == "1\n"
