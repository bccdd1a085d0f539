from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.models.ranks import ALONE
from tools.bench import learners_child
from tools.bench.learners_child import Work, core_of, groups_of, update
from tools.bench.subject import small_model

WORK = Work("", 1, 1, prompts=3, samples=2, mean_tokens=9)


def test_every_rank_makes_up_the_same_groups_of_many_lengths() -> None:
    first, second = (groups_of(replace(WORK, rank=rank), 100) for rank in (0, 1))
    lengths = [t.length for group in first for t in group.trajectories]
    assert lengths == [t.length for group in second for t in group.trajectories]
    assert len(set(lengths)) > 1
    assert (first[2].prompt_tokens == second[2].prompt_tokens).all()


def test_an_update_can_be_repeated_on_the_same_groups(tmp_path: Path) -> None:
    core = core_of(replace(WORK, folder=str(small_model(tmp_path))), ALONE)
    groups = groups_of(WORK, core.network.config.vocab_size)
    first, second = update(core, groups), update(core, groups)
    assert first["tokens"] == second["tokens"] == sum(t.length for g in groups for t in g.trajectories)
    assert min(first["seconds"], second["seconds"]) > 0


def test_a_child_is_rank_0_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(learners_child, "lead", lambda work: seen.append(f"lead {work.rank}"))
    monkeypatch.setattr(learners_child, "follow", lambda work: seen.append(f"follow {work.rank}"))
    monkeypatch.setattr(learners_child.torch, "set_num_threads", lambda _: None)
    for rank in (0, 1):
        told = '{"folder": "", "ranks": 2, "threads": 1, "prompts": 1, "samples": 2, "mean_tokens": 3, "rank": %d}'
        monkeypatch.setattr(learners_child.sys, "argv", ["learners_child", told % rank])
        learners_child.main()
    assert seen == ["lead 0", "follow 1"]
