"""The arithmetic of the bound, against a scheduler that tries it out."""

import random
from collections import Counter

import pytest

from actors.window import batch_is_legal, choose_batch, feasible, room_for


def trainable(groups, next_version, bound, batch_groups):
    """Train the oldest first, a batch an update, and see whether any comes too late."""
    left = sorted(Counter(groups).elements())
    version = next_version
    while left:
        batch, left = left[:batch_groups], left[batch_groups:]
        if min(batch) + bound < version:
            return False
        version += 1
    return True


def random_groups(rng, next_version, bound):
    versions = range(max(0, next_version - bound - 1), next_version + 1)
    return {version: rng.randint(0, 4) for version in versions}


@pytest.mark.parametrize("seed", range(200))
def test_feasible_is_what_training_the_oldest_first_achieves(seed):
    rng = random.Random(seed)
    bound, batch, version = rng.randint(0, 3), rng.randint(1, 4), rng.randint(0, 5)
    groups = random_groups(rng, version, bound)
    assert feasible(groups, version, bound, batch) == trainable(groups, version, bound, batch)


@pytest.mark.parametrize("seed", range(200))
def test_room_is_the_most_that_stays_feasible(seed):
    rng = random.Random(seed)
    bound, batch, version = rng.randint(0, 3), rng.randint(1, 4), rng.randint(0, 5)
    groups = random_groups(rng, version, bound)
    fresh = rng.randint(max(0, version - bound), version)
    room = room_for(groups, fresh, version, bound, batch)
    more = Counter(groups) + Counter({fresh: room})
    if room:
        assert trainable(more, version, bound, batch)
        assert sum(more.values()) <= (bound + 1) * batch
    if trainable(groups, version, bound, batch):
        assert not trainable(more + Counter({fresh: 1}), version, bound, batch)


def test_room_is_smaller_where_generators_lag():
    assert room_for({}, fresh=5, next_version=5, bound=2, batch_groups=4) == 12
    assert room_for({}, fresh=4, next_version=5, bound=2, batch_groups=4) == 8
    assert room_for({}, fresh=2, next_version=5, bound=2, batch_groups=4) == 0


def test_a_group_past_the_bound_closes_the_window_only_where_the_bound_is_enforced():
    groups = {0: 1}
    assert room_for(groups, 3, 3, 1, 4) == 0
    assert room_for(groups, 3, 3, 1, 4, enforce=False) == 7
    assert choose_batch([(3, 9)], {0: 1, 3: 1}, 3, 1, 1) == []
    assert choose_batch([(3, 9)], {0: 1, 3: 1}, 3, 1, 1, enforce=False) == [9]


def test_a_batch_is_the_oldest_complete_groups_sorted_by_id():
    complete = [(2, 1), (0, 8), (1, 3), (0, 6)]
    assert choose_batch(complete, {0: 2, 1: 1, 2: 1}, 2, 2, 3) == [3, 6, 8]


@pytest.mark.parametrize("seed", range(200))
def test_what_stays_can_be_trained_and_the_oldest_batch_is_always_legal(seed):
    rng = random.Random(seed)
    bound, batch, version = rng.randint(0, 3), rng.randint(1, 4), rng.randint(0, 5)
    groups = random_groups(rng, version, bound)
    if not feasible(groups, version, bound, batch):
        return
    outstanding = [(age, group_id) for group_id, age in enumerate(sorted(Counter(groups).elements()))]
    oldest = outstanding[:batch]
    assert choose_batch(outstanding, groups, version, bound, batch) == [group_id for _, group_id in oldest]
    complete = rng.sample(outstanding, rng.randint(0, len(outstanding)))
    chosen = set(choose_batch(complete, groups, version, bound, batch))
    assert chosen <= {group_id for _, group_id in complete}
    ages = Counter(age for age, _ in complete)
    assert not complete or bool(chosen) == batch_is_legal(ages, groups, version, bound, batch)
    if chosen:
        stay = Counter(age for age, group_id in outstanding if group_id not in chosen)
        assert trainable(stay, version + 1, bound, batch)
        assert all(age + bound >= version for age, group_id in outstanding if group_id in chosen)
