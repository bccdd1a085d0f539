"""The warm start is made once and kept."""

import pytest
from transformers import AutoModelForCausalLM

from actors.warm_start import warm_start
from tests.actors.fake_driver import changed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERILUNE_CACHE", str(tmp_path))
    return tmp_path


def test_it_is_made_on_first_use_and_shared_by_runs_of_other_seeds(config, checked, cache):
    said, warm = [], changed(config, {"model.warmup.steps": 1})
    folder = warm_start(warm, checked.prompts, said.append)
    assert len(said) == 1
    weights = (folder / "model.safetensors").read_bytes()
    assert warm_start(changed(warm, {"seed": 7, "run.seed": 7}), checked.prompts, said.append) == folder
    assert len(said) == 1, "the second use finds it"
    cold = warm_start(config, checked.prompts, said.append)
    assert len(said) == 1, "no step, no word"
    assert cold != folder
    assert (cold / "model.safetensors").read_bytes() != weights, "the steps changed something"
    assert {path.name for path in (cache / "warm").iterdir()} == {folder.name, cold.name}, "nothing half made"
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.config.hidden_size == config.model.scratch.width


def test_another_recipe_is_another_policy(config, checked):
    first = warm_start(config, checked.prompts, str)
    for key, value in (("model.warmup.seed", 9), ("model.scratch.width", 48), ("cluster.threads.learner", 2)):
        assert warm_start(changed(config, {key: value}), checked.prompts, str) != first, key
