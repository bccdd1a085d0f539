"""The controller alone: small scenes by hand, and thousands of interleavings in a simulated world."""

import random

import pytest

from actors.controller import Controller
from engine.config.schedule import InFlight, Refill, ScheduleConfig, Straggler
from engine.records import event as ev
from engine.records.codec import decode, encode
from engine.records.trajectory import DropReason, FinishReason, Outcome
from engine.records.version import PolicyVersion
from engine.records.work import Progress
from tests.fakes import World

KINDS = ("sync", "iterative", "async")


# ---- a world by chance --------------------------------------------------------------------------


def random_schedule(rng, like, **fixed):
    bound = {"sync": 0, "iterative": rng.randint(1, 3), "async": rng.randint(0, 3)}[like]
    batch = rng.randint(1, 4)
    options = {
        "kind": like, "max_staleness": bound, "batch_groups": batch, "min_groups": rng.randint(0, batch),
        "round_budget_tokens": 0 if like == "sync" else rng.choice((0, 2, 3)),
        "on_straggler": rng.choice(list(Straggler)), "in_flight": rng.choice(list(InFlight)),
        "no_spread": rng.choice(list(Refill)), "max_attempts": rng.randint(1, 3),
    }
    return ScheduleConfig(**{**options, **fixed})


def random_world(seed, like, **fixed):
    rng = random.Random(f"{like} {seed}")
    return World(
        seed, random_schedule(rng, like, **fixed), k=rng.randint(1, 4), updates=rng.randint(1, 5),
        generators=rng.randint(1, 3), checkpoint_every=rng.choice((0, 1, 2)),
        chaos=rng.choice((0, 0, 3, 8)), no_spread=rng.choice((0, 0.3)), max_tokens=rng.choice((3, 6, 30)),
        judge_fails=rng.choice((0, 0.2)), commit_fails=rng.choice((0, 0.1)),
    )


def commands_of(world):
    return [answer for _, _, answers in world.lives for answer in answers]


def check_inbox_reproduces(world):
    """The events of every life, through the codec into a new controller, give the same commands."""
    for state, events, commands in world.lives:
        controller = world.new_controller(state)
        assert [controller.step(decode(event)) for event in events] == commands
    assert encode(controller.state_dict()) == encode(world.controller.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(4))
def test_any_interleaving_reaches_the_end_and_keeps_the_books(kind, part):
    for seed in range(25 * part, 25 * (part + 1)):
        world = random_world(seed, kind).run()
        if seed % 5 == 0:
            check_inbox_reproduces(world)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(7))
def test_two_thousand_interleavings(kind, part):
    for seed in range(1000 + 100 * part, 1000 + 100 * (part + 1)):
        random_world(seed, kind).run()


@pytest.mark.parametrize("seed", range(30))
def test_async_with_bound_0_is_sync(seed):
    sync = random_world(seed, "sync").run()
    free = random_world(seed, "sync", kind="async", round_budget_tokens=2).run()
    assert commands_of(free) == commands_of(sync)


@pytest.mark.parametrize("seed", range(20))
def test_with_bound_0_no_interleaving_changes_what_an_update_takes(seed):
    world = World(seed, ScheduleConfig(batch_groups=3), updates=3, generators=1 + seed % 3).run()
    assert world.books.train_log == [(v, (3 * v, 3 * v + 1, 3 * v + 2)) for v in range(3)]


def test_the_same_seed_gives_the_same_commands():
    for kind in KINDS:
        assert commands_of(random_world(3, kind).run()) == commands_of(random_world(3, kind).run())


# ---- scenes by hand -----------------------------------------------------------------------------


class Scene:
    """A controller, and short words for what happens to it."""

    def __init__(self, k=1, updates=9, checkpoint_every=0, num_generators=1, state=None, **schedule):
        options = {"kind": "async", "max_staleness": 1, "batch_groups": 1, **schedule}
        self.step_of = Controller(
            ScheduleConfig(**options), samples_per_prompt=k, updates=updates, lease_s=10.0,
            checkpoint_every=checkpoint_every, num_generators=num_generators,
        )
        if state is not None:
            self.step_of.load_state_dict(decode(encode(state)))
        self.lineage = self.step_of.version.lineage

    def __call__(self, event):
        return self.step_of.step(event)

    def version(self, updates):
        return PolicyVersion(self.lineage, updates)

    def join(self, name, updates=0):
        return self(ev.GeneratorJoined(name, self.version(updates)))

    def draw(self, *prompt_ids):
        return self(ev.Drawn(prompt_ids))

    def hear(self, name, updates, *items):
        return self(ev.Progressed(name, self.version(updates), items))

    def done(self, key, oldest=0, length=4):
        return Progress(key, 0, length, length, self.version(oldest), FinishReason.stop, 1, 1)

    def cut(self, key, oldest=0, new_tokens=2):
        version = self.version(oldest) if new_tokens else None
        return Progress(key, 0, new_tokens, new_tokens, version, None, 1, 1)

    def judge(self, *keys, failed=False, no_spread=()):
        outcome = Outcome.failed if failed else Outcome.ok
        return self(ev.Judged(tuple(ev.JudgedItem(key, outcome) for key in keys), no_spread))

    def update(self, updates, committed=True):
        return self(ev.Updated(self.version(updates), committed))

    def finish(self, name, key, updates=0):
        """A trajectory ends and is judged; what follows from the verdict."""
        assert self.hear(name, updates, self.done(key, updates)) == [ev.Judge((key,))]
        return self.judge(key)


def test_one_update_of_sync_word_by_word():
    scene = Scene(kind="sync", max_staleness=0, batch_groups=2, k=2, updates=2)
    assert scene.join("a") == [ev.Draw(2)]
    assert scene.draw("p", "q") == [
        ev.Admit(0, "p", (0, 1)), ev.Admit(1, "q", (2, 3)), ev.Dispatch("a", (0, 1, 2, 3))
    ]
    assert scene.hear("a", 0, scene.done(2), scene.done(0)) == [ev.Judge((2, 0))]
    assert scene.judge(0, 2) == []
    assert scene.hear("a", 0, scene.done(1), scene.done(3)) == [ev.Judge((1, 3))]
    assert scene.judge(1) == []
    assert scene.judge(3) == [ev.Train((0, 1))]
    assert scene.hear("a", 0) == []
    assert scene.update(1) == [ev.Publish(scene.version(1))]
    assert scene.hear("a", 0) == [], "nothing is issued under old weights"
    assert scene.hear("a", 1) == [ev.Draw(2)]
    scene.draw("r", "s")
    scene.hear("a", 1, *[scene.done(key, 1) for key in range(4, 8)])
    assert scene.judge(4, 5, 6, 7) == [ev.Train((2, 3))]
    assert scene.update(2) == [ev.Publish(scene.version(2)), ev.Finish()]
    assert scene.hear("a", 2) == [], "the run is over"


def test_async_goes_on_sampling_while_the_learner_trains():
    scene = Scene()
    assert scene.join("a") == [ev.Draw(2)]
    assert scene.draw("p", "q")[-1] == ev.Dispatch("a", (0, 1))
    assert scene.finish("a", 0) == [ev.Train((0,))]
    assert scene.hear("a", 0, scene.cut(1)) == [ev.Dispatch("a", (1,))], "cut work goes on at once"
    assert scene.update(1) == [ev.Publish(scene.version(1))]
    assert scene.hear("a", 1) == [ev.Draw(1)], "the acknowledgement opens the window"


def test_no_more_is_drawn_than_the_last_updates_need():
    assert Scene(max_staleness=3, batch_groups=2, updates=2).join("a") == [ev.Draw(4)]


def test_the_first_work_is_shared_among_all_generators():
    scene = Scene(num_generators=2, batch_groups=2, max_staleness=0)
    assert scene.join("a") == []
    assert scene.join("b") == [ev.Draw(2)]
    assert scene.draw("p", "q")[2:] == [ev.Dispatch("a", (0,)), ev.Dispatch("b", (1,))]
    scene(ev.GeneratorLost("b"))
    assert scene.hear("a", 0, scene.done(0)) == [ev.Judge((0,))], "later one may be missing"


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_generator_that_never_comes_is_not_waited_for(lost_first):
    scene = Scene(num_generators=3, batch_groups=2, max_staleness=0)
    scene.join("a")
    lost = [ev.GeneratorLost("c"), ev.NobodyFollows("c")]
    if lost_first:
        assert [scene(event) for event in lost] == [[], []], "b may still come"
        assert scene.join("b") == [ev.Draw(2)]
    else:
        scene.join("c")
        assert [scene(event) for event in lost] == [[], []]
        assert scene.join("b") == [ev.Draw(2)]
    scene = Scene(num_generators=2, batch_groups=2, max_staleness=0)
    scene.join("a")
    assert scene(ev.NobodyFollows("b")) == [ev.Draw(2)]
    assert scene(ev.NobodyFollows("c")) == [], "once all lived, nobody is awaited"


def test_a_latecomer_under_old_weights_gets_no_work_that_is_counted_as_newer():
    scene = Scene()
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    scene.update(1)
    assert scene.hear("a", 1) == [ev.Draw(1)]
    scene.join("b", updates=0)
    assert scene.draw("r")[-1] == ev.Dispatch("a", (2,)), "b is idle, but would sample it by version 0"
    assert scene.hear("a", 1, scene.cut(2, oldest=1)) == [ev.Dispatch("a", (2,))]
    assert scene.hear("b", 1) == []
    assert scene.hear("a", 1, scene.cut(2, oldest=1)) == [ev.Dispatch("b", (2,))]


def test_work_waits_where_nobody_serves_new_enough():
    scene = Scene()
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    scene.update(1)
    scene.hear("a", 1)
    scene.draw("r")
    scene.join("b", updates=0)
    assert scene(ev.GeneratorLost("a")) == [ev.Dispatch("b", (1,))], "only the old one"
    assert scene.hear("b", 1) == [ev.Dispatch("b", (2,))]


@pytest.mark.parametrize("on_straggler", list(Straggler))
def test_an_update_waits_for_the_group_that_it_would_push_past_the_bound(on_straggler):
    scene = Scene(on_straggler=on_straggler)
    scene.join("a")
    scene.draw("slow", "q")
    assert scene.finish("a", 1) == [ev.Train((1,))], "group 0 may still be trained by version 1"
    scene.update(1)
    scene.hear("a", 1)
    scene.draw("r")
    if on_straggler is Straggler.wait:
        assert scene.finish("a", 2, updates=1) == []
        assert scene.finish("a", 0, updates=0) == [ev.Train((0,))]
    else:
        assert scene.finish("a", 2, updates=1) == [ev.Train((2,))]


def test_a_masked_straggler_past_the_bound_does_not_stop_the_run():
    scene = Scene(on_straggler=Straggler.mask, batch_groups=2)
    scene.join("a")
    scene.draw("slow", "q", "r", "s")
    for key in (1, 2):
        scene.finish("a", key)
    scene.update(1)
    scene.hear("a", 1)
    scene.draw("t", "u")
    scene.finish("a", 3)
    assert scene.finish("a", 4, updates=1) == [ev.Train((3, 4))]
    scene.update(2)
    assert scene.hear("a", 2) == [ev.Draw(2)]
    assert scene.finish("a", 5, updates=1) == []
    assert scene.finish("a", 0) == [ev.Train((0, 5))], "past the bound by one, and masked"


def test_a_dead_incarnation_is_not_believed():
    scene = Scene()
    scene.join("a#1")
    scene.draw("p", "q")
    assert scene(ev.GeneratorLost("a#1")) == []
    assert scene.join("a#2") == [ev.Dispatch("a#2", (0, 1))]
    assert scene.hear("a#1", 0, scene.done(0)) == []
    assert scene.hear("a#2", 0, scene.done(0)) == [ev.Judge((0,))]


def test_nobody_may_speak_for_another():
    scene = Scene()
    scene.join("a")
    scene.draw("p", "q")
    scene.join("b")
    assert scene.hear("b", 0, scene.done(0)) == []
    assert scene.hear("a", 0, scene.done(0)) == [ev.Judge((0,))]


def test_a_group_is_as_old_as_the_generator_that_took_it():
    scene = Scene(num_generators=2, batch_groups=2, max_staleness=2)
    scene.join("b", 0)
    scene.join("a", 1)
    scene.draw("p")
    assert scene.step_of.roster.ages == {1: 1}, "a took it"


def test_a_trajectory_that_dies_too_often_is_given_up_and_its_slot_refilled():
    scene = Scene(max_attempts=1)
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 1)
    scene.join("b")
    dropped = ev.DropGroup(0, "p", DropReason.given_up)
    assert scene(ev.GeneratorLost("a")) == [dropped, ev.Draw(1)]


def test_a_dropped_group_says_how_old_it_is():
    scene = Scene(max_attempts=1)
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    scene.update(1)
    (dropped,) = scene(ev.GeneratorLost("a"))
    assert dropped == ev.DropGroup(1, "q", DropReason.given_up, age_versions=1)


def test_a_prompt_in_two_deaths_is_quarantined_but_not_while_it_is_learned():
    scene = Scene(max_attempts=9)
    scene.join("a")
    scene.draw("p", "p")
    assert scene.finish("a", 0) == [ev.Train((0,))]
    scene(ev.GeneratorLost("a"))
    assert scene.join("b") == [ev.Dispatch("b", (1,))]
    assert scene(ev.GeneratorLost("b")) == [ev.DropGroup(1, "p", DropReason.poison_prompt, quarantine=True)]
    assert scene.update(1) == [ev.Publish(scene.version(1))], "group 0 was trained, not dropped"


def test_a_judge_that_fails_is_asked_again_then_the_group_is_dropped():
    scene = Scene(k=2)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.done(0), scene.done(1))
    assert scene.judge(0) == []
    assert scene.judge(1, failed=True) == [ev.Judge((1,))]
    assert scene.judge(1, failed=True) == [ev.DropGroup(0, "p", DropReason.judge_failed), ev.Draw(1)]
    assert scene.judge(1) == [], "a verdict on what left"


def test_a_second_verdict_changes_nothing():
    scene = Scene(k=2)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.done(0), scene.done(1))
    assert scene.judge(0) == []
    assert scene.judge(0, failed=True) == []
    assert scene.judge(1) == [ev.Train((0,))]


def test_a_dropped_group_waits_for_its_flying_members():
    scene = Scene(k=2, kind="iterative", round_budget_tokens=2)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.done(0))
    scene.judge(0, failed=True)
    assert scene.judge(0, failed=True) == []
    assert scene.hear("a", 0, scene.done(1)) == [
        ev.DropGroup(0, "p", DropReason.judge_failed), ev.Draw(1)
    ], "and what came back is not judged"


def test_groups_without_spread_are_replaced_where_asked():
    for policy, answer in (
        (Refill.none, [ev.Train((0,))]),
        (Refill.refill, [ev.DropGroup(0, "p", DropReason.no_spread), ev.Draw(1)]),
    ):
        scene = Scene(kind="sync", max_staleness=0, no_spread=policy)
        scene.join("a")
        scene.draw("p")
        scene.hear("a", 0, scene.done(0))
        assert scene.judge(0, no_spread=(0, 77)) == answer


def test_an_update_that_is_not_committed_publishes_nothing_and_takes_new_groups():
    scene = Scene(kind="sync", max_staleness=0)
    scene.join("a")
    scene.draw("p")
    scene.finish("a", 0)
    assert scene.update(0, committed=False) == [ev.Draw(1)]


def test_when_time_is_up_the_run_is_complete_with_that_update():
    scene = Scene(kind="sync", max_staleness=0, updates=9)
    scene.join("a")
    scene.draw("p")
    scene.finish("a", 0)
    assert scene(ev.Updated(scene.version(1), True, last=True)) == [ev.Publish(scene.version(1)), ev.Finish()]


def test_a_round_cuts_and_goes_on_under_the_next_weights():
    scene = Scene(kind="iterative", batch_groups=2, round_budget_tokens=2, min_groups=1)
    assert scene.join("a") == [ev.Draw(4)]
    scene.draw("p", "q", "r", "s")
    assert scene.hear("a", 0, scene.cut(1)) == [], "its budget is spent"
    for key in (0, 2):
        assert scene.finish("a", key) == []
    assert scene.finish("a", 3) == [ev.Train((0, 2))]
    scene.update(1)
    assert scene.hear("a", 1) == [ev.Dispatch("a", (1,)), ev.Draw(2)], "unfinished work first"


def test_a_round_with_too_few_groups_goes_on_without_an_update():
    scene = Scene(kind="iterative", batch_groups=2, round_budget_tokens=2)
    scene.join("a")
    scene.draw("p", "q", "r", "s")
    note, *work = scene.hear("a", 0, *map(scene.cut, range(4)))
    assert isinstance(note, ev.Note)
    assert work == [ev.Dispatch("a", (0, 1, 2, 3))]


def test_an_update_may_take_fewer_groups_when_the_bound_allows_it():
    scene = Scene(kind="iterative", batch_groups=2, min_groups=1, round_budget_tokens=2, updates=1)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.cut(1))
    assert scene.finish("a", 0) == [ev.Train((0,))]


def test_a_round_that_has_nothing_to_sample_trains_at_once():
    scene = Scene(kind="iterative", updates=2)
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    assert scene.finish("a", 1) == [ev.Train((0,))]
    scene.update(1)
    assert scene.hear("a", 1) == [ev.Train((1,))], "all that the last update needs is here"


def test_a_checkpoint_waits_until_nothing_is_under_way():
    scene = Scene(k=2, batch_groups=1, checkpoint_every=1)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.done(0), scene.done(1))
    assert scene.judge(0, 1) == [ev.Train((0,))]
    assert scene.update(1) == [ev.Publish(scene.version(1)), ev.CutAll("a")]
    assert scene.join("b", 1) == [], "asked once"
    assert scene.hear("a", 1) == [ev.CutAll("a")], "it answered and still holds something"
    assert scene.hear("a", 1, scene.done(2)) == [ev.Judge((2,)), ev.CutAll("a")]
    assert scene.hear("a", 1, scene.cut(3)) == []
    assert scene.judge(2) == [ev.WriteCheckpoint()]
    assert scene.hear("b", 1) == []
    assert scene(ev.CheckpointWritten()) == [ev.Dispatch("a", (3,)), ev.Draw(1)]


def test_what_the_barrier_cut_goes_on_in_the_same_round():
    scene = Scene(kind="iterative", round_budget_tokens=5)
    scene.join("a")
    scene.draw("p", "q")
    scene.hear("a", 0, scene.cut(0))
    assert scene(ev.StopRequested()) == [ev.CutAll("a")]
    assert scene.hear("a", 0, scene.cut(1)) == [ev.WriteCheckpoint()]
    groups = scene.step_of.roster.groups.values()
    assert [g.members[0].status for g in groups] == ["spent", "ready"]
    assert scene(ev.CheckpointWritten()) == [ev.Finish(stopped=True)]


def test_a_stopped_run_goes_on_from_its_checkpoint_under_a_new_lineage():
    scene = Scene(kind="sync", max_staleness=0, batch_groups=2)
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    assert scene(ev.StopRequested()) == [ev.CutAll("a")]
    assert scene.hear("a", 0, scene.cut(1)) == [ev.WriteCheckpoint()]
    state = scene.step_of.state_dict()
    assert scene(ev.CheckpointWritten()) == [ev.Finish(stopped=True)]
    again = Scene(kind="sync", max_staleness=0, batch_groups=2, state=state)
    assert again.step_of.version == PolicyVersion(1, 0)
    assert again.join("a") == [ev.Dispatch("a", (1,))]
    assert again.finish("a", 1) == [ev.Train((0, 1))]
    again.update(1)
    assert again.hear("a", 1) == [ev.Draw(2)]
    assert again.draw("r", "s")[0] == ev.Admit(2, "r", (2,)), "ids go on"


def test_a_round_opens_under_the_newest_weights_even_for_work_that_older_ones_might_do():
    scene = Scene(kind="iterative", max_staleness=2, round_budget_tokens=2)
    scene.join("a")
    scene.draw("p", "q", "r")
    scene.hear("a", 0, scene.cut(1), scene.cut(2))
    scene.finish("a", 0)
    scene.update(1)
    assert scene.hear("a", 1) == [ev.Dispatch("a", (1, 2)), ev.Draw(1)]
    scene.draw("s")
    scene(ev.StopRequested())
    assert scene.hear("a", 1, *map(scene.cut, (1, 2, 3)))[-1] == ev.WriteCheckpoint()
    again = Scene(kind="iterative", max_staleness=2, state=scene.step_of.state_dict())
    assert again.join("a", 0) == []
    assert again.hear("a", 1) == [ev.Dispatch("a", (1, 2, 3))]


def test_a_stop_waits_for_the_learner_and_nothing_new_is_drawn():
    scene = Scene()
    scene.join("a")
    scene.draw("p", "q")
    scene.finish("a", 0)
    assert scene(ev.StopRequested()) == []
    assert scene.hear("a", 0) == []
    assert scene.update(1) == [ev.Publish(scene.version(1)), ev.CutAll("a")]


def test_a_resume_with_all_groups_complete_trains_at_once():
    scene = Scene(kind="sync", max_staleness=0)
    scene.join("a")
    scene.draw("p")
    scene.hear("a", 0, scene.done(0))
    assert scene(ev.StopRequested()) == []
    assert scene.judge(0) == [ev.WriteCheckpoint()]
    again = Scene(kind="sync", max_staleness=0, state=scene.step_of.state_dict())
    assert again.join("a") == [ev.Train((0,))]


def test_an_expired_lease_ends_its_holder_and_returns_its_work():
    scene = Scene()
    scene.join("a")
    scene.join("b")
    scene.draw("p", "q")
    assert scene(ev.Ticked(1e6)) == [], "the clock starts anywhere"
    assert [scene(ev.Ticked(1e6 + later)) for later in (2, 4, 6, 8, 9)] == [[]] * 5
    scene.hear("b", 0)
    assert scene(ev.Ticked(1e6 + 11)) == [ev.Restart("a"), ev.Dispatch("b", (0,))]
    assert scene.hear("a", 0, scene.done(0)) == [], "too late"
    assert scene(ev.GeneratorLost("a")) == [], "known already"


def test_all_generators_may_die_in_a_round():
    scene = Scene(kind="sync", max_staleness=0, max_attempts=1, batch_groups=2)
    scene.join("a")
    scene.draw("p", "q")
    assert scene.finish("a", 0) == []
    assert scene(ev.GeneratorLost("a")) == [ev.DropGroup(1, "q", DropReason.given_up)]
    assert scene.join("b") == [ev.Draw(1)], "the round is the same one"
