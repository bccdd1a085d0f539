"""A whole run in this process: what it leaves on disk, and what ends it."""

import json
import re
import signal

import pytest
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import run as room
from actors.launch import compose
from actors.run import StopSignal, dry_run, run
from engine.errors import ActorError, RunFolderError, WeightChannelError
from engine.metrics import DOCUMENTED
from engine.run_folder import RunFolder

SMALL = (
    "experiment=smoke", "run.quiet=true", "model.warmup.steps=0", "learning.updates=2", "reward.workers=0",
    "prompts.num_heldout=4", "canary.prompts=2", "learning.checkpoint_every=1",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Summary, configuration, its text and the folder of a run of two updates."""
    folder = tmp_path_factory.mktemp("done") / "run"
    config, text = compose([*SMALL, f"run.dir={folder}"])
    return run(config, text), config, text, folder


def test_a_run_leaves_everything_in_its_folder(done):
    summary, _, text, folder = done
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl", "ledger.msgpack",
                     "arrivals.msgpack", "checkpoints", "model"}
    assert (folder / "config.yaml").read_text() == text
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    updates = [json.loads(line)["update"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(updates) == {0, 1, 2}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir())[-1].startswith("update-00000")
    assert summary["updates"] == 2
    assert summary["ledger"]["closes"]
    assert summary["trained_tokens"] == summary["ledger"]["tokens"]["carried_loss"]
    assert None not in (summary["accuracy_before"], summary["accuracy_after"])


NOT_EVERY_RUN = {
    r"heldout/.*_at_k": "evaluation.k",
    r"learn/(fixed_kl|entropy|ratio|clip_fraction|importance_.*|drift_.*|behaviour_kl)": "a loss that has it",
    r"learn/rank_.*": "several learners",
    r"hybrid/.*": "a shared device",
    r"ledger/.*": "a reason that came up",
}


def test_every_metric_of_the_table_is_written(done):
    written = set().union(*map(json.loads, (done[3] / "metrics.jsonl").read_text().splitlines()))
    missing = {name for name in DOCUMENTED if not any(re.fullmatch(rule, name) for rule in NOT_EVERY_RUN)} - written
    assert missing == set()


def test_the_model_loads_as_any_other(done):
    folder = done[3] / "model"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == network.config.vocab_size
    assert network.generate(tokenizer("1 + 1", return_tensors="pt").input_ids, max_new_tokens=1).shape[0] == 1


def test_the_saved_configuration_is_the_run_again(done):
    _, config, text, folder = done
    saved = OmegaConf.merge(OmegaConf.create(compose([*SMALL])[1]), OmegaConf.load(folder / "config.yaml"))
    assert OmegaConf.to_yaml(saved) == text
    assert saved.learning.updates == config.learning.updates


def test_a_complete_run_is_not_made_again_and_its_folder_is_not_taken(done, monkeypatch):
    summary, config, text, folder = done
    with pytest.raises(RunFolderError, match=r"run\.exists=resume"):
        run(config, text)
    resumed, text = compose([*SMALL, f"run.dir={folder}", "run.exists=resume"])
    monkeypatch.setattr(room, "_live", None)
    assert run(resumed, text) == json.loads(json.dumps(summary))


def test_the_summary_of_a_stopped_life_does_not_outlive_it(done, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    config, text = compose([*SMALL, f"run.dir={folder}", "run.exists=resume"])
    RunFolder.open(config.run).close()
    (folder / "config.yaml").write_text(text)
    (folder / "summary.json").write_text(json.dumps(done[0] | {"updates": 1}))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_live", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, text)
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize(("actor", "lives"), [("learner", 2), ("judge#1", 1)])
def test_the_death_of_the_learner_begins_another_life(done, monkeypatch, tmp_path, actor, lives):
    _, config, *_ = done
    begun = []

    def life(config, checked, folder, stop, restarts, resumed):
        begun.append(resumed)
        if len(begun) == 1:
            raise ActorError(actor, "update", "it died")
        return {"restarts": restarts.total}

    monkeypatch.setattr(room, "life", life)
    folder = RunFolder.open(compose([*SMALL, f"run.dir={tmp_path / 'run'}"])[0].run)
    try:
        if lives == 2:
            assert room._live(config, None, folder, StopSignal()) == {"restarts": 1}
        else:
            with pytest.raises(ActorError, match="judge#1"):
                room._live(config, None, folder, StopSignal())
    finally:
        folder.close()
    assert begun == [False, True][:lives]


def test_what_an_actor_raised_on_purpose_begins_no_other_life(monkeypatch, tmp_path):
    """A learner that finds no GPU would find none three times more."""
    begun = []

    def life(*_):
        begun.append(1)
        raise WeightChannelError("weights.channel=nccl needs a GPU in this process: choose another channel")

    monkeypatch.setattr(room, "life", life)
    folder = RunFolder.open(compose([*SMALL, f"run.dir={tmp_path / 'run'}"])[0].run)
    try:
        with pytest.raises(WeightChannelError, match="needs a GPU"):
            room._live(compose([*SMALL])[0], None, folder, StopSignal())
    finally:
        folder.close()
    assert begun == [1]


def test_a_signal_is_remembered_once_there_is_something_to_save():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        stop.worth_saving = True
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dry_run_starts_and_writes_nothing(tmp_path):
    said = []
    config, text = compose([*SMALL, f"run.dir={tmp_path / 'run'}"])
    dry_run(config, text, said.append)
    assert said[0] == text
    assert json.loads(said[1])
    assert "64 training and 4 held-out prompts" in said[2]
    assert list(tmp_path.iterdir()) == []
