"""Seats: what all serve, who is least loaded, leases; the heaps against a plain scan."""

import random

import pytest

from actors.seats import Seats


class Plain:
    """The same questions, answered by looking at everybody."""

    def __init__(self):
        self.seats, self.fresh = {}, 0

    def join(self, name, version):
        self.seats[name] = [version, 0]
        self._raise()

    def leave(self, name):
        self.seats.pop(name, None)
        self._raise()

    def hear(self, name, version):
        if name in self.seats:
            self.seats[name][0] = max(self.seats[name][0], version)
            self._raise()

    def take(self, oldest, count):
        able = [(load, name) for name, (version, load) in self.seats.items() if version >= oldest]
        if not able:
            return None
        self.seats[min(able)[1]][1] += count
        return min(able)[1]

    def _raise(self):
        self.fresh = max(self.fresh, min((version for version, _ in self.seats.values()), default=0))


@pytest.mark.parametrize("seed", range(40))
def test_it_answers_as_a_plain_scan_would(seed):
    rng, seats, plain, version = random.Random(seed), Seats(), Plain(), 0
    names = [f"g{i}" for i in range(rng.randint(1, 12))]
    for _ in range(400):
        name, move = rng.choice(names), rng.choice(("join", "leave", "hear", "hear", "take", "take", "back"))
        version += rng.random() < 0.05
        older = max(version - rng.randint(0, 3), 0)
        if move == "take":
            assert seats.take(older, 2) == plain.take(older, 2)
        elif move == "back":
            if plain.seats.get(name, [0, 0])[1]:
                plain.seats[name][1] -= 1
                seats.hand_back(name)
        elif move == "leave":
            seats.leave(name)
            plain.leave(name)
        else:
            getattr(seats, move)(name, older)
            getattr(plain, move)(name, older)
        assert seats.fresh == plain.fresh
        assert seats.holders() == sorted(n for n, (_, load) in plain.seats.items() if load)
        assert seats.all_serve(older) == (bool(plain.seats) and all(v >= older for v, _ in plain.seats.values()))
        assert {n: [s.version, s.open_trajectories] for n, s in seats.by_name.items()} == plain.seats


def test_who_is_awaited_comes_or_is_known_not_to_come():
    seats = Seats(3)
    seats.join("a", 0)
    seats.join("b", 0)
    seats.leave("b")
    assert seats.awaited == 3
    seats.expect_fewer()
    assert seats.awaited == 2
    seats.join("c", 0)
    assert seats.awaited == 0
    seats.leave("c")
    seats.expect_fewer()
    assert seats.awaited == 0


def test_fresh_is_what_all_have_served_and_never_falls():
    seats = Seats()
    seats.join("b", 2)
    seats.join("a", 3)
    assert seats.fresh == 2
    seats.hear("b", 3)
    assert seats.fresh == 3
    seats.join("c", 1)
    assert seats.fresh == 3
    assert not seats.all_serve(3)
    seats.leave("c")
    assert seats.all_serve(3)
    assert not Seats().all_serve(0), "nobody serves nothing"


def test_work_goes_to_the_least_loaded_that_serves_new_enough():
    seats = Seats()
    seats.join("b", 2)
    seats.join("a", 2)
    seats.join("c", 1)
    assert [seats.take(2, 2) for _ in range(3)] == ["a", "b", "a"]
    assert seats.take(0, 1) == "c"
    assert seats.take(3, 1) is None
    assert seats.holders() == ["a", "b", "c"]


def test_a_voice_from_the_grave_changes_nothing():
    seats = Seats()
    seats.join("a", 1)
    seats.leave("a")
    seats.leave("a")
    assert seats.hear("a", 5) is None
    assert seats.fresh == 1
    assert seats.by_name == {}


def passing(seats, since, until, lease_s):
    """Who is late at the last of many looks at the clock."""
    steps = range(1, 9)
    return [seats.tick(since + (until - since) * step / 8, lease_s) for step in steps][-1]


def test_a_lease_counts_from_the_first_tick_after_the_last_word():
    seats = Seats()
    seats.join("a", 0)
    seats.join("idle", 0)
    seats.take(0, 2)
    assert seats.tick(1e6, 10.0) == [], "the clock may start anywhere and be silent for long"
    assert passing(seats, 1e6, 1e6 + 10, 10.0) == []
    seats.hear("a", 0)
    assert seats.tick(1e6 + 11, 10.0) == []
    assert passing(seats, 1e6 + 11, 1e6 + 21, 10.0) == []
    assert seats.tick(1e6 + 22, 10.0) == ["a"]


def test_however_long_the_clock_was_silent_nobody_is_ended_for_that():
    """As while the driver waits for somebody: answers lie there, and are read after the tick."""
    seats = Seats()
    seats.join("a", 0)
    seats.take(0, 1)
    assert seats.tick(0.0, 600.0) == []
    assert passing(seats, 0.0, 400.0, 600.0) == []
    assert seats.tick(1100.0, 600.0) == []
    assert passing(seats, 1100.0, 1150.0, 600.0) == []
    assert seats.tick(1151.0, 600.0) == ["a"], "silent for 400 s, 150 s of the silence, and 51 s"
    seats.hear("a", 0)
    assert [seats.tick(now, 600.0) for now in (1152.0, 2000.0, 3000.0, 4000.0, 5000.0)] == [[]] * 5
    assert seats.tick(5001.0, 600.0) == ["a"], "one silence after another is no excuse"


def test_more_work_does_not_renew_a_lease():
    seats = Seats()
    seats.join("a", 0)
    seats.take(0, 1)
    seats.tick(0.0, 10.0)
    seats.take(0, 1)
    assert passing(seats, 0.0, 11.0, 10.0) == ["a"]
