from __future__ import annotations

import numpy as np
import torch

from engine.generate.cache import ParkedSlots, SlotTable
from engine.records.version import PolicyVersion
from engine.records.work import Request
from tests.small_models import ask, random_prompt

LAYERS, SLOTS, CAPACITY = 2, 4, 16


def table() -> SlotTable:
    shape = (LAYERS, SLOTS, CAPACITY, 1, 4)
    made = SlotTable(*shape[1:3])
    made.hold(torch.zeros(shape), torch.zeros(shape))
    return made


def take(slots: SlotTable, slot: int, prompt: np.ndarray, earlier: int = 0, filled: int = 0) -> None:
    slots.take(slot, ask(slot, prompt, CAPACITY, generated=np.arange(50, 50 + earlier, dtype=np.int32)))
    slots.filled[slot] = filled


FRESH = np.ones(SLOTS, bool)


def test_a_taken_slot_holds_prompt_and_earlier_segments() -> None:
    slots = table()
    prompt = random_prompt(0, 5)
    take(slots, 2, prompt, earlier=3)
    assert slots.free() == [0, 1, 3]
    assert slots.tokens[2, :8].tolist() == [*prompt.tolist(), 50, 51, 52]
    assert slots.response(2).tolist() == [50, 51, 52]
    assert (slots.length[2], slots.prompt_length[2], slots.filled[2]) == (8, 5, 0)
    slots.release(2)
    assert slots.free() == [0, 1, 2, 3]
    assert len(slots.ready()) == len(slots.unready()) == 0


def test_a_slot_is_ready_when_only_its_newest_token_has_no_key() -> None:
    slots = table()
    for slot, filled in enumerate((0, 3, 4)):
        take(slots, slot, random_prompt(slot, 5), filled=filled)
    take(slots, 3, random_prompt(9, 1))
    assert slots.ready().tolist() == [2, 3]
    assert slots.unready().tolist() == [0, 1]
    slots.forget_keys()
    assert slots.ready().tolist() == [3]


def test_a_prompt_is_copied_from_a_slot_that_holds_all_of_it() -> None:
    slots = table()
    prompt = random_prompt(0, 5)
    take(slots, 0, prompt, earlier=2, filled=6)
    take(slots, 1, prompt)
    take(slots, 2, random_prompt(3, 5))
    slots.keys[:, 0], slots.values[:, 0] = 7.0, 8.0
    assert slots.copy_shared_prompt(1, FRESH) == 4
    assert slots.filled[1] == 4
    assert (slots.keys[:, 1, :4] == 7).all()
    assert (slots.values[:, 1, :4] == 8).all()
    assert (slots.keys[:, 1, 4:] == 0).all()
    assert slots.copy_shared_prompt(1, FRESH) == 0
    assert slots.copy_shared_prompt(2, FRESH) == 0


def test_a_half_filled_slot_gains_what_it_lacks() -> None:
    slots = table()
    prompt = random_prompt(0, 9)
    take(slots, 0, prompt, filled=8)
    take(slots, 3, prompt, filled=5)
    assert slots.copy_shared_prompt(3, FRESH) == 3


def test_nothing_is_copied_from_stale_unfilled_or_freed_slots() -> None:
    slots = table()
    prompt = random_prompt(0, 5)
    for slot, filled in enumerate((4, 3, 4)):
        take(slots, slot, prompt, filled=filled)
    slots.release(2)
    take(slots, 3, prompt)
    stale = FRESH.copy()
    stale[0] = False
    assert slots.copy_shared_prompt(3, stale) == 0
    assert slots.copy_shared_prompt(3, FRESH) == 4


def test_a_prompt_of_one_token_needs_no_keys() -> None:
    slots = table()
    take(slots, 0, random_prompt(0, 1))
    take(slots, 1, random_prompt(0, 1))
    assert slots.copy_shared_prompt(1, FRESH) == 0
    assert slots.ready().tolist() == [0, 1]


def test_a_pass_is_filled_in_order_and_the_last_slot_gets_the_rest() -> None:
    slots = table()
    first, second = random_prompt(0, 6), random_prompt(1, 8)
    take(slots, 1, first, filled=2)
    take(slots, 0, second)
    work = slots.plan_prefill([1, 0], rows=8)
    assert work.spans == {1: (2, 3), 0: (0, 5)}
    assert work.slots.tolist() == [1] * 3 + [0] * 5
    assert work.positions.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert work.tokens.tolist() == [*first[2:5].tolist(), *second[:5].tolist()]
    assert slots.plan_prefill([1, 0], rows=3).spans == {1: (2, 3)}


def test_rows_that_nobody_needs_are_marked() -> None:
    slots = table()
    take(slots, 2, random_prompt(0, 3))
    work = slots.plan_prefill([2], rows=5)
    assert work.positions.tolist() == [0, 1, -1, -1, -1]


def test_a_sibling_waits_for_the_prompt_on_its_way_but_not_past_it() -> None:
    slots = table()
    prompt = random_prompt(0, 5)
    take(slots, 0, prompt)
    take(slots, 1, prompt)
    take(slots, 2, prompt, earlier=3, filled=4)
    assert slots.plan_prefill([0, 1, 2], rows=16).spans == {0: (0, 4), 2: (4, 3)}


OLD = PolicyVersion(0, 3)


def resume(prompt: np.ndarray, trajectory_id: int, earlier: int) -> Request:
    return ask(trajectory_id, prompt, CAPACITY, generated=np.arange(50, 50 + earlier, dtype=np.int32))


def parked(keep: bool = True) -> tuple[SlotTable, ParkedSlots, np.ndarray]:
    """Trajectory 7 was cut with two tokens in slot 1, all its keys but the newest there; slot 0 decodes."""
    slots = table()
    slots.occupied[0] = True
    held = ParkedSlots(slots, keep)
    prompt = random_prompt(0, 5)
    take(slots, 1, prompt, earlier=2, filled=6)
    held.leave(1, 7, OLD, cut=True)
    return slots, held, prompt


def test_a_cut_trajectory_that_comes_back_finds_its_keys() -> None:
    slots, held, prompt = parked()
    assert slots.free() == [1, 2, 3]
    assert held.place(ask(8, random_prompt(1, 5), CAPACITY)) == (2, None)
    assert held.place(resume(prompt, 7, earlier=2)) == (1, OLD)
    assert slots.ready().tolist() == [1]


def test_nothing_is_kept_where_nothing_is_parked() -> None:
    slots, held, prompt = parked(keep=False)
    assert held.place(resume(prompt, 7, earlier=2)) == (1, None)
    assert slots.unready().tolist() == [1]


def test_a_trajectory_that_began_anew_finds_no_keys() -> None:
    slots, held, prompt = parked()
    assert held.place(resume(prompt, 7, earlier=1)) == (1, None)
    assert slots.filled[1] == 0


def test_who_was_parked_longest_makes_room_when_nothing_else_is_free() -> None:
    slots, held, prompt = parked()
    for slot, trajectory_id in ((2, 8), (3, 9)):
        take(slots, slot, random_prompt(trajectory_id, 5), earlier=1, filled=5)
        held.leave(slot, trajectory_id, OLD, cut=True)
    # The very tokens that were parked there, of another trajectory: its keys are not vouched for.
    assert held.place(resume(prompt, 20, earlier=2)) == (1, None)
    assert slots.filled[1] == 0
    assert held.place(resume(prompt, 7, earlier=2)) == (2, None)
    assert held.place(resume(random_prompt(9, 5), 9, earlier=1)) == (3, OLD)


def test_other_weights_leave_nothing_parked() -> None:
    slots, held, prompt = parked()
    held.clear()
    assert held.place(resume(prompt, 7, earlier=2)) == (1, None)
    assert slots.filled[1] == 0


def test_a_finished_trajectory_leaves_nothing_behind() -> None:
    slots, held, prompt = parked()
    take(slots, 2, prompt, earlier=2, filled=6)
    held.leave(2, 8, OLD, cut=False)
    assert slots.filled[2] == slots.length[2] == 0
