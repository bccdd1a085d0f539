"""The examples of docs/extending.md, run as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from actors.launch import compose
from actors.run import run
from docs.examples import doubling, near_judge, reinforce
from engine.config.cluster import WeightChannelKind, WeightsConfig
from engine.config.learning import DottedLossConfig
from engine.config.prompts import PromptsConfig
from engine.config.rewards import RewardConfig
from engine.errors import WeightChannelError
from engine.losses.objective import Loss, LossInputs, LossScale, build_loss
from engine.records.prompt import Prompt
from engine.records.version import PolicyVersion
from engine.rewards.judge import build_judge
from engine.weights.channel import open_receiver, open_sender

ROOT = Path(__file__).resolve().parents[1]
DOTTED = {
    "reward": ["+reward.judges.near=docs.examples.near_judge.build"],
    "loss": ["loss=dotted", "loss.path=docs.examples.reinforce.build"],
    "prompts": ["prompts.source=dotted", "prompts.dotted_path=docs.examples.doubling.prompts"],
    "weights": ["weights.channel=dotted", "weights.path=docs.examples.disk_channel.channel"],
}
SMOKE = ["experiment=smoke", "model.warmup.steps=0", "canary.prompts=0", "run.quiet=true"]


def test_a_run_with_all_four(tmp_path):
    overrides = [option for options in DOTTED.values() for option in options]
    config, text = compose([*SMOKE, *overrides, "learning.updates=2", f"run.dir={tmp_path / 'run'}"])
    summary = run(config, text)
    assert summary["updates"] == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("learn/loss" in line for line in lines), "partial credit gives the groups a spread"
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert "twice" in json.dumps(sample)


def test_the_judge_scores():
    judge = build_judge("near", RewardConfig(judges={"near": "docs.examples.near_judge.build"}))
    prompt = Prompt.ask("p", "What is twice 4?", "8", kind="near")
    assert isinstance(judge, near_judge.NearJudge)
    assert [judge.judge(prompt, said, None).score for said in (" 8\n", "=8?", "9")] == [1.0, 0.5, 0.0]


def test_the_loss_is_reinforce():
    loss = build_loss(DottedLossConfig(path="docs.examples.reinforce.build"))
    assert isinstance(loss, Loss)
    assert isinstance(loss, reinforce.Reinforce)
    logprob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    zeros = torch.zeros(3)
    advantage = loss.advantage(torch.tensor([1.0, 0.0]))
    inputs = LossInputs(logprob, zeros, None, None, None, torch.tensor([0, 0, 1]), advantage,
                        torch.tensor([2, 1]))
    loss(inputs, LossScale(1, 2, 3, 2)).loss.backward()
    torch.testing.assert_close(logprob.grad, torch.tensor([-0.5, -0.5, 0.5]) / 3)


def test_the_channel_verifies_and_leaves_nothing(tmp_path):
    config = WeightsConfig(channel=WeightChannelKind.dotted, path="docs.examples.disk_channel.channel",
                           folder=str(tmp_path))
    sender, receiver = open_sender(config, "run"), open_receiver(config, "run")
    manifests = [sender.publish({"a": torch.full((9,), float(u))}, PolicyVersion(0, u)) for u in (1, 2, 3)]
    with pytest.raises(WeightChannelError, match="gone"):
        receiver.receive(manifests[0])
    assert (receiver.receive(manifests[2]).tensors["a"] == 3.0).all()
    Path(manifests[1].location).write_bytes(bytes(manifests[1].num_bytes))
    with pytest.raises(WeightChannelError, match="refused"):
        receiver.receive(manifests[1])
    receiver.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []


def test_the_prompt_source_gives_distinct_questions():
    made = doubling.prompts(PromptsConfig(num_train=5, num_heldout=2))
    assert len({prompt.question_digest() for prompt in made}) == 7
    assert made[3].answer_key == "6"


@pytest.mark.parametrize("name", ["near_judge", "reinforce", "doubling", "disk_channel"])
def test_the_page_shows_the_files_as_they_are(name):
    page = (ROOT / "docs" / "extending.md").read_text()
    assert (ROOT / "docs" / "examples" / f"{name}.py").read_text().strip() in page


def test_the_page_names_the_options_that_are_run():
    page = (ROOT / "docs" / "extending.md").read_text()
    for option in (option for options in DOTTED.values() for option in options):
        assert option in page, option


def test_every_path_on_the_pages_exists():
    """Placeholders are written with x, y or X for a name."""
    named = re.compile(r"`((?:engine|actors|tools|configs|csrc|tests|docs)/[\w./]+)`")
    for page in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")):
        for name in named.findall(page.read_text(encoding="utf-8")):
            placeholder = re.search(r"(^|[/_])[xyX](/|\.)", name)
            assert placeholder or (ROOT / name).exists(), f"{page.name} names {name}"
