from dataclasses import replace

import numpy as np

from engine.config.prompts import CurriculumConfig
from engine.prompts.curriculum import difficulties, hard_mask, only_hard
from engine.records.prompt import Prompt


def test_a_label_goes_before_the_success_rate():
    plain = Prompt.ask("a", "?", "1")
    labelled = replace(plain, prompt_id="b", difficulty=0.9)
    rates = {"a": 0.75, "b": 1.0}
    assert difficulties([plain, labelled], rates.__getitem__).tolist() == [0.25, 0.9]


def test_hard_prompts_lie_at_or_above_the_quantile():
    spread = np.array([0.4, 0.1, 0.3, 0.2])
    assert hard_mask(spread, 0.5).tolist() == [True, False, True, False]
    assert hard_mask(spread, 0.0).all()
    assert hard_mask(spread, 0.99).tolist() == [True, False, False, False]
    assert hard_mask(np.array([0.5, 0.5, 0.1]), 0.6).tolist() == [True, True, False]
    assert hard_mask(np.full(7, 0.3), 0.9).all()


def test_the_switch_comes_after_the_uniform_updates():
    config = CurriculumConfig(uniform_updates=24)
    assert [only_hard(config, updates) for updates in (0, 23, 24, 25)] == [False, False, True, True]
