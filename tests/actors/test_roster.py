"""Counters against a recount, leases, deaths, and the way through a checkpoint."""

import random
from collections import Counter

import pytest

from actors.roster import FINISHED, FLYING, JUDGED, READY, SPENT, Member, OpenGroup, Roster
from engine.records.codec import decode, encode
from engine.records.trajectory import DropReason


def group_of(group_id, prompt_id="p", oldest=0, k=2, status=READY):
    first = group_id * k
    return OpenGroup(group_id, prompt_id, [Member(first + i, oldest, status) for i in range(k)])


def fly(roster, group, holder):
    for member in group.members:
        roster.place(group, member, FLYING, holder)


def check_counters(roster):
    groups = roster.groups.values()
    counted = [g for g in groups if g.group_id not in roster.training]
    assert roster.ages == Counter(g.oldest for g in counted)
    assert 0 not in roster.ages.values(), "an empty count would stay for ever"
    assert roster.complete == {g.group_id for g in counted if g.complete}
    assert roster.complete_ages == Counter(g.oldest for g in counted if g.complete)
    for status in (READY, FLYING, SPENT, FINISHED, JUDGED):
        assert roster.any(status) == any(m.status == status for g in groups for m in g.members)
    ready = [(g.group_id, [m for m in g.members if m.status == READY]) for g in groups if not g.doomed]
    assert [(g.group_id, members) for g, members in roster.ready()] == [(i, ms) for i, ms in ready if ms]
    lost = [g for g in groups if g.doomed and not any(m.status == FLYING for m in g.members)]
    assert roster.lost_causes() == lost


@pytest.mark.parametrize("seed", range(30))
def test_counters_are_what_a_recount_gives(seed):
    rng, roster, issued = random.Random(seed), Roster(max_attempts=3), 0
    for _ in range(150):
        move = rng.choice(("add", "place", "place", "stamp", "doom", "train", "remove", "bury"))
        open_groups = [g for g in roster.groups.values() if g.group_id not in roster.training]
        if move == "add" or not open_groups:
            roster.add(group_of(issued, f"p{rng.randint(0, 2)}", rng.randint(0, 3)))
            issued += 1
        elif move == "train":
            roster.train(rng.sample(sorted(roster.complete), min(1, len(roster.complete))))
        elif move == "remove":
            roster.remove(rng.choice(sorted(roster.groups)))
        elif move == "bury":
            roster.bury("a")
        else:
            group = rng.choice(open_groups)
            member = rng.choice(group.members)
            if move == "place":
                status = rng.choice((READY, FLYING, SPENT, FINISHED, JUDGED, JUDGED, JUDGED))
                if member.status != JUDGED:
                    roster.place(group, member, status, "a" if status == FLYING else "")
            elif move == "stamp":
                roster.stamp(group, member, rng.randint(0, 5))
            else:
                roster.doom(group, DropReason.no_spread)
        check_counters(roster)


def test_a_roster_survives_a_checkpoint():
    roster = Roster(max_attempts=2)
    for group_id, status in enumerate((READY, SPENT, JUDGED)):
        roster.add(group_of(group_id, f"p{group_id}", oldest=group_id, status=status))
    member = roster.groups[0].members[1]
    member.length, member.judge_failures = 7, 1
    fly(roster, roster.groups[0], "a")
    roster.bury("a")
    again = Roster(max_attempts=2)
    again.add(group_of(9))
    again.load_state_dict(decode(encode(roster.state_dict())))
    check_counters(again)
    assert again.state_dict() == roster.state_dict()
    assert again.groups == roster.groups
    assert again.find(18) is None
    fly(again, again.groups[0], "b")
    again.bury("b")
    assert again.groups[0].doomed == DropReason.poison_prompt.value, "deaths before count"


def test_a_death_hands_back_only_what_the_dead_one_held():
    roster = Roster(max_attempts=3)
    for group_id, holder in enumerate("ab"):
        group = group_of(group_id, f"p{group_id}")
        roster.add(group)
        fly(roster, group, holder)
    roster.bury("a")
    assert [m.status for _, m in roster.members(READY, FLYING)] == [READY, READY, FLYING, FLYING]
    assert [m.deaths for m in roster.groups[0].members] == [1, 1]


def test_too_many_deaths_give_a_group_up():
    roster = Roster(max_attempts=1)
    group = group_of(0)
    roster.add(group)
    fly(roster, group, "a")
    roster.bury("a")
    assert [g.doomed for g in roster.lost_causes()] == [DropReason.given_up.value]
    assert roster.ready() == []


def test_two_deaths_quarantine_a_prompt_unless_a_group_of_it_was_trained_in_between():
    def deaths_of(trained_between):
        roster = Roster(max_attempts=9)
        for group_id in range(2):
            roster.add(group_of(group_id))
        fly(roster, roster.groups[0], "a")
        roster.bury("a")
        if trained_between:
            for member in roster.groups[1].members:
                roster.place(roster.groups[1], member, JUDGED)
            roster.train([1])
        fly(roster, roster.groups[0], "b")
        roster.bury("b")
        return [(g.group_id, g.doomed) for g in roster.lost_causes()]

    poison = DropReason.poison_prompt.value
    assert deaths_of(trained_between=False) == [(0, poison), (1, poison)]
    assert deaths_of(trained_between=True) == []


def test_what_the_learner_has_can_not_be_dropped_and_is_not_counted():
    roster = Roster(max_attempts=3)
    roster.add(group_of(0, status=JUDGED))
    roster.train([0])
    assert not roster.ages
    assert not roster.complete
    roster.doom(roster.groups[0], DropReason.no_spread)
    assert roster.lost_causes() == []
    roster.remove(0)
    assert not roster.groups
    assert not roster.training
    check_counters(roster)


def test_a_doomed_group_is_no_longer_for_an_update():
    roster = Roster(max_attempts=3)
    roster.add(group_of(0, status=JUDGED))
    assert roster.complete == {0}
    roster.doom(roster.groups[0], DropReason.no_spread)
    assert roster.complete == set()
    assert [g.group_id for g in roster.lost_causes()] == [0]


def test_the_first_reason_stays_but_poison_wins():
    roster = Roster(max_attempts=3)
    group = group_of(0)
    roster.add(group)
    roster.doom(group, DropReason.judge_failed)
    roster.doom(group, DropReason.no_spread)
    assert group.doomed == DropReason.judge_failed.value
    roster.doom(group, DropReason.poison_prompt)
    assert group.doomed == DropReason.poison_prompt.value
