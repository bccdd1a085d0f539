from collections import Counter
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from engine.config.prompts import CurriculumConfig, PriorityConfig, PromptOrder, PromptsConfig
from engine.errors import PromptError
from engine.prompts.draw import PromptDraw
from engine.records.prompt import Prompt

SIZES = [3, 4, 1, 5, 2, 4, 7, 3, 3, 6]


def make_prompts(count, difficulty=None):
    prompts = [Prompt.ask(f"p{n}", f"question {n}", str(n)) for n in range(count)]
    if difficulty is None:
        return prompts
    return [replace(p, difficulty=d) for p, d in zip(prompts, difficulty, strict=True)]


def make_draw(count=10, order=PromptOrder.epoch, seed=0, difficulty=None, **others):
    return PromptDraw(make_prompts(count, difficulty), PromptsConfig(order=order, **others), seed)


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


def play(draw, sizes, start=0):
    """Draw and report verdicts that depend on nothing but the prompts drawn."""
    drawn = []
    for update, size in enumerate(sizes, start=start):
        prompts = ids(draw.draw(size, update))
        drawn.append(prompts)
        for prompt_id in prompts:
            draw.observe(prompt_id, int(prompt_id[1:]) % 5 / 4, 8)
    return drawn


def test_every_epoch_asks_every_prompt_once_in_another_order():
    draw = make_draw(10)
    first, second = (ids(draw.draw(5, 0)) + ids(draw.draw(5, 0)) for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(ids(make_prompts(10)))
    assert first != second
    assert first != ids(make_prompts(10))


@pytest.mark.parametrize("sizes", [[7], [9, 1, 2], [8, 8, 1, 1, 1, 5]])
def test_draws_over_the_end_of_an_epoch_repeat_nothing_and_lose_nothing(sizes):
    draw = make_draw(10)
    counts = Counter()
    for size in sizes * 40:
        prompts = ids(draw.draw(size, 0))
        assert len(set(prompts)) == size
        counts.update(prompts)
    assert sum(counts.values()) == 40 * sum(sizes)
    assert max(counts.values()) - min(counts.values()) <= 2


@pytest.mark.parametrize("order", PromptOrder)
def test_a_draw_larger_than_the_set_is_made_of_whole_sets(order):
    draw = make_draw(4, order)
    counts = Counter(ids(draw.draw(10, 0)))
    assert set(counts.values()) == {2, 3}
    assert len(counts) == 4


@pytest.mark.parametrize("order", PromptOrder)
def test_draws_depend_on_the_seed_alone(order):
    assert play(make_draw(order=order), SIZES) == play(make_draw(order=order), SIZES)
    assert play(make_draw(order=order), SIZES) != play(make_draw(order=order, seed=1), SIZES)
    assert make_draw(order=order, seed=-1).draw(3, 0)


@pytest.mark.parametrize("order", PromptOrder)
@pytest.mark.parametrize("stop", range(len(SIZES)))
def test_a_resume_continues_exactly_from_every_point(order, stop):
    options = {"order": order, "curriculum": CurriculumConfig(uniform_updates=4)}
    whole = make_draw(**options)
    whole.quarantine("p3")
    expected = play(whole, SIZES)
    before = make_draw(**options)
    before.quarantine("p3")
    play(before, SIZES[:stop])
    state = msgpack.unpackb(msgpack.packb(before.state_dict()))
    after = make_draw(**options)
    after.load_state_dict(state)
    assert play(after, SIZES[stop:], start=stop) == expected[stop:]
    assert after.state_dict() == whole.state_dict()
    assert after.metrics() == whole.metrics()


def test_a_state_of_other_prompts_or_another_seed_is_refused():
    state = make_draw(10).state_dict()
    with pytest.raises(PromptError, match="stored draw has prompts"):
        make_draw(9).load_state_dict(state)
    with pytest.raises(PromptError, match="stored draw has seed 0, this run has 1"):
        make_draw(10, seed=1).load_state_dict(state)


def test_curriculum_switches_to_the_hard_prompts():
    difficulty = [0.1 * n for n in range(10)]
    draw = make_draw(
        order=PromptOrder.curriculum, difficulty=difficulty, curriculum=CurriculumConfig(uniform_updates=2)
    )
    easy_and_hard = ids(draw.draw(5, 0)) + ids(draw.draw(5, 1))
    assert len(set(easy_and_hard)) == 10
    counts = Counter(prompt_id for update in range(2, 22) for prompt_id in ids(draw.draw(5, update)))
    assert counts == {f"p{n}": 20 for n in range(5, 10)}


def test_curriculum_without_labels_goes_by_success_rate():
    draw = make_draw(order=PromptOrder.curriculum, curriculum=CurriculumConfig(uniform_updates=0))
    for n in range(10):
        draw.observe(f"p{n}", n / 10, 10)
    assert sorted(ids(draw.draw(5, 0))) == ["p0", "p1", "p2", "p3", "p4"]


def test_priority_draws_in_proportion_to_failure():
    priority = PriorityConfig(window=8, floor=0.1, initial_success_rate=0.5)
    draw = make_draw(4, PromptOrder.priority, priority=priority)
    for prompt_id, success in (("p0", 0.0), ("p1", 0.75), ("p2", 1.0)):
        draw.observe(prompt_id, success, 8)
    number = 4000
    counts = Counter(draw.draw(1, 0)[0].prompt_id for _ in range(number))
    weights = np.array([1.0, 0.25, 0.1, 0.5])  # p2 is solved: the floor; p3 is unseen: 1 - initial
    expected = number * weights / weights.sum()
    observed = np.array([counts[f"p{n}"] for n in range(4)])
    assert (((observed - expected) ** 2) / expected).sum() < 16.3  # chi square, 3 degrees, p = 0.001


def test_priority_draws_do_not_repeat_within_a_draw():
    draw = make_draw(10, PromptOrder.priority)
    for _ in range(50):
        assert len(set(ids(draw.draw(8, 0)))) == 8


@pytest.mark.parametrize("order", PromptOrder)
def test_quarantined_prompts_are_never_drawn_again(order):
    draw = make_draw(5, order)
    draw.draw(3, 0)
    draw.quarantine("p2")
    draw.quarantine("p4")
    counts = Counter(prompt_id for _ in range(20) for prompt_id in ids(draw.draw(2, 0)))
    assert set(counts) == {"p0", "p1", "p3"}
    for prompt_id in ("p0", "p1", "p3"):
        draw.quarantine(prompt_id)
    with pytest.raises(PromptError, match="all 5 training prompts are quarantined"):
        draw.draw(1, 0)


def test_prompts_outside_the_set_are_refused():
    draw = make_draw(2)
    with pytest.raises(PromptError, match="'other' is not among the 2"):
        draw.observe("other", 1.0, 4)
    with pytest.raises(PromptError, match="'other' is not among the 2"):
        draw.quarantine("other")
    with pytest.raises(PromptError, match="nothing to draw from"):
        make_draw(0)


def test_metrics_show_where_the_prompts_stand():
    draw = make_draw(4)
    assert "prompts/success_mean" not in draw.metrics()
    draw.draw(3, 0)
    draw.draw(3, 0)
    draw.observe("p0", 0.0, 8)
    draw.observe("p1", 1.0, 8)
    draw.quarantine("p3")
    metrics = draw.metrics()
    assert metrics["prompts/epoch"] == 1
    assert metrics["prompts/drawn"] == 6
    assert metrics["prompts/quarantined"] == 1
    assert metrics["prompts/observed_fraction"] == 0.5
    assert metrics["prompts/success_mean"] == 0.5
    assert metrics["prompts/success_0_20"] == metrics["prompts/success_80_100"] == 0.5
    assert metrics["prompts/success_40_60"] == 0
    draw.close()
