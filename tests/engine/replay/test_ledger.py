from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.errors import LedgerError
from engine.metrics import DOCUMENTED
from engine.records.trajectory import DropReason, MaskReason
from engine.replay.ledger import Ledger, read_journal

MASKS = sorted(reason.value for reason in MaskReason)


class Books(RuleBasedStateMachine):
    """A world that keeps its own count of every token, beside the ledger's."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.msgpack"
        self.ledger = Ledger(self.path)
        self.next_id = 0
        self.lives = 0
        self.held: dict[int, str] = {}
        self.delivered: dict[int, int] = {}
        self.made: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        self.entries = 0
        self.saved: tuple[Any, ...] | None = None

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def generators(self) -> st.SearchStrategy[str]:
        return st.sampled_from([f"g{self.lives}.{number}" for number in range(2)])

    @rule(count=st.integers(1, 3))
    def issue(self, count: int) -> None:
        for _ in range(count):
            self.ledger.issue(self.next_id, self.next_id // 2, "p")
            self.held[self.next_id], self.delivered[self.next_id] = "", 0
            self.next_id += 1
            self.entries += 1

    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        idle = [key for key, holder in self.held.items() if not holder]
        ids = data.draw(st.lists(st.sampled_from(idle), unique=True)) if idle else []
        name = data.draw(self.generators())
        self.ledger.dispatch(ids, name)
        self.held.update(dict.fromkeys(ids, name))
        self.entries += 1

    @rule(data=st.data(), sampled=st.integers(0, 9))
    def work(self, data: st.DataObject, sampled: int) -> None:
        """A generator samples, delivers some of it and reports, as one answer brings it."""
        name = data.draw(self.generators())
        mine = [key for key, holder in self.held.items() if holder == name]
        if not mine:
            return
        self.made[name] = self.made.get(name, 0) + sampled
        self.slots[name] = self.slots.get(name, 0) + sampled
        for key in data.draw(st.lists(st.sampled_from(mine), unique=True)):
            tokens = data.draw(st.integers(0, self.slots[name]))
            self.slots[name] -= tokens
            self.delivered[key] += tokens
            self.held[key] = ""
            self.ledger.deliver(key, tokens, finished=False)
            self.entries += 1
        self.ledger.report(name, self.made[name], self.slots[name])

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(self.generators())
        self.ledger.lose(name)
        self.made.pop(name, None)
        self.slots.pop(name, None)
        self.held = {key: "" if holder == name else holder for key, holder in self.held.items()}
        self.entries += 1

    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        idle = [key for key, holder in self.held.items() if not holder]
        ids = data.draw(st.lists(st.sampled_from(idle), unique=True)) if idle else []
        tokens = sum(self.delivered[key] for key in ids)
        masked: Counter[str] = Counter()
        for _ in range(data.draw(st.integers(0, 2))):
            masked[data.draw(st.sampled_from(MASKS))] += data.draw(st.integers(0, tokens - masked.total()))
        self.ledger.consume(ids, tokens - masked.total(), masked)
        self.leave(ids)

    @rule(data=st.data(), reason=st.sampled_from(list(DropReason)))
    def drop(self, data: st.DataObject, reason: DropReason) -> None:
        idle = [key for key, holder in self.held.items() if not holder]
        ids = data.draw(st.lists(st.sampled_from(idle), unique=True)) if idle else []
        self.ledger.drop(ids, reason)
        self.leave(ids)

    def leave(self, ids: list[int]) -> None:
        for key in ids:
            del self.held[key], self.delivered[key]
        self.entries += 1

    @rule()
    def checkpoint(self) -> None:
        state = msgpack.unpackb(msgpack.packb(self.ledger.state_dict()))
        self.saved = (state, dict(self.delivered), self.next_id, self.entries)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def resume(self) -> None:
        """A new life from the last checkpoint; its generators count anew."""
        assert self.saved is not None
        self.ledger.close()
        self.ledger = Ledger(self.path)
        state, delivered, self.next_id, self.entries = self.saved
        self.ledger.load_state_dict(state)
        self.lives += 1
        self.delivered = dict(delivered)
        self.held = dict.fromkeys(delivered, "")
        self.made, self.slots = {}, {}

    @invariant()
    def both_sums_close(self) -> None:
        self.ledger.check()
        counts = self.ledger.counts()
        assert counts["trajectories"]["issued"] == self.next_id
        assert counts["trajectories"]["in_flight"] == sum(map(bool, self.held.values()))
        assert counts["trajectories"]["buffered"] == sum(not holder for holder in self.held.values())
        assert counts["tokens"]["buffered"] == sum(self.delivered.values())
        assert counts["tokens"]["in_transit"] == sum(self.slots.values())

    @invariant()
    def the_journal_can_be_read(self) -> None:
        self.ledger.sync()
        assert len(read_journal(self.path)) == self.entries

    @invariant()
    def memory_holds_what_is_outstanding_alone(self) -> None:
        assert set(self.ledger._open) == set(self.held)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def delivered(tokens: int) -> Ledger:
    ledger = Ledger(None)
    ledger.issue(1, 0, "p")
    ledger.dispatch([1], "g")
    ledger.deliver(1, tokens, finished=True)
    return ledger


@pytest.mark.parametrize("reported", [4, 6])
def test_a_token_lost_or_counted_twice_opens_the_sum(reported: int) -> None:
    ledger = delivered(5)
    ledger.report("g", generated=reported, in_slots=0)
    assert not ledger.counts()["closes"]
    with pytest.raises(LedgerError, match="does not close"):
        ledger.check()


def test_a_lost_trajectory_opens_the_sum() -> None:
    ledger = delivered(0)
    ledger.check()
    del ledger._open[1]
    with pytest.raises(LedgerError, match="does not close"):
        ledger.check()


@pytest.mark.parametrize(("carried", "masked"), [(4, {}), (4, {"stale": 2}), (6, {})])
def test_the_learner_must_account_for_every_token(carried: int, masked: dict[str, int]) -> None:
    ledger = delivered(5)
    with pytest.raises(LedgerError, match="replay delivered 5"):
        ledger.consume([1], carried, masked)
    ledger.consume([1], 4, {"stale": 1})
    ledger.report("g", 5, 0)
    ledger.check()


def test_what_is_not_outstanding_can_not_be_touched() -> None:
    ledger = delivered(5)
    with pytest.raises(LedgerError, match="issued twice"):
        ledger.issue(1, 0, "p")
    for action in (
        lambda: ledger.dispatch([1, 2], "g"), lambda: ledger.deliver(2, 1, False),
        lambda: ledger.consume([1, 2], 5, {}), lambda: ledger.drop([1, 2], DropReason.given_up),
    ):
        with pytest.raises(LedgerError, match=r"\[2\].*not outstanding"):
            action()
    with pytest.raises(LedgerError, match="twice"):
        ledger.consume([1, 1], 10, {})
    ledger.report("g", 5, 0)
    ledger.check()
    assert ledger.counts()["trajectories"]["trained"] == 0


def test_a_lost_generator_drops_what_it_held_and_frees_its_work() -> None:
    ledger = Ledger(None)
    for key in (1, 2):
        ledger.issue(key, 0, "p")
    ledger.dispatch([1], "g")
    ledger.dispatch([2], "h")
    ledger.report("g", generated=7, in_slots=7)
    ledger.lose("g")
    counts = ledger.counts()
    assert counts["tokens"]["dropped"] == {"generator_lost": 7}
    assert (counts["trajectories"]["buffered"], counts["trajectories"]["in_flight"]) == (1, 1)
    ledger.check()


def test_the_end_of_the_run_accounts_for_what_is_left() -> None:
    ledger = delivered(5)
    ledger.issue(2, 0, "p")
    ledger.dispatch([2], "g")
    ledger.report("g", generated=8, in_slots=3)
    ledger.end()
    counts = ledger.counts()
    assert counts["trajectories"]["dropped"] == {"end_of_run": 2}
    assert counts["tokens"]["dropped"] == {"end_of_run": 8}
    assert counts["closes"]
    assert ledger._open == {}


def test_evaluation_has_an_account_of_its_own() -> None:
    ledger = delivered(5)
    ledger.report("g", 5, 0)
    ledger.account("evaluation", 100)
    ledger.account("evaluation", 11)
    assert ledger.counts()["accounts"] == {"evaluation": 111}
    ledger.check()


def test_the_loss_carrying_share() -> None:
    ledger = delivered(5)
    assert ledger.metrics() == {"learn/loss_carrying_fraction": 1.0}
    ledger.consume([1], 1, {"stale": 4})
    assert ledger.metrics() == {"learn/loss_carrying_fraction": 0.2}


def test_what_was_dropped_is_counted_by_reason() -> None:
    ledger = delivered(5)
    ledger.drop([1], DropReason.no_spread)
    told = ledger.metrics()
    assert (told["ledger/dropped_no_spread_trajectories"], told["ledger/dropped_no_spread_tokens"]) == (1.0, 5.0)
    assert set(told) <= set(DOCUMENTED)


def story(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.issue(1, 0, "p")
    ledger.dispatch([1], "g")
    ledger.deliver(1, 5, finished=True)
    ledger.consume([1], 4, {"stale": 1})
    ledger.lose("g")
    ledger.issue(2, 1, "q")
    ledger.drop([2], DropReason.given_up)
    return ledger


STORY = [
    ["issue", 1, 0, "p"], ["dispatch", [1], "g"], ["deliver", 1, 5, True],
    ["consume", [1], 4, {"stale": 1}], ["lose", "g", 0, 0], ["issue", 2, 1, "q"], ["drop", [2], "given_up"],
]


def test_the_journal_tells_every_life(tmp_path: Path) -> None:
    ledger = story(tmp_path / "journal")
    assert ledger.sync() == (tmp_path / "journal").stat().st_size
    ledger.close()
    ledger.close()
    assert read_journal(tmp_path / "journal") == STORY


def test_a_torn_last_entry_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    story(path).close()
    data = path.read_bytes()
    ends, size = set(), 0
    for entry in STORY:
        size += len(msgpack.packb(entry))
        ends.add(size)
    whole = 0
    for cut in range(len(data) + 1):
        whole += cut in ends
        path.write_bytes(data[:cut])
        assert read_journal(path) == STORY[:whole]


@pytest.mark.parametrize("bad", [b"\xc1", b"\x00\x00", b"\xa1\xff\x90", b"\x90"])
def test_a_damaged_journal_says_where(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "journal"
    story(path).close()
    data = path.read_bytes()
    path.write_bytes(data + bad + data)
    with pytest.raises(LedgerError, match=f"damaged at byte {len(data)}"):
        read_journal(path)


def test_resume_truncates_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ledger = Ledger(path)
    ledger.issue(1, 0, "p")
    state = ledger.state_dict()
    ledger.issue(2, 0, "p")
    ledger.close()
    path.write_bytes(path.read_bytes() + b"\x94\xa5")
    again = Ledger(path)
    again.load_state_dict(state)
    again.issue(2, 5, "other life")
    again.close()
    assert read_journal(path) == [["issue", 1, 0, "p"], ["issue", 2, 5, "other life"]]


def test_a_journal_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ledger = story(path)
    state = ledger.state_dict()
    ledger.close()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerError, match="its checkpoint stands at"):
        Ledger(path).load_state_dict(state)


def test_undelivered_tokens_are_no_part_of_a_checkpoint() -> None:
    ledger = delivered(5)
    ledger.report("g", generated=9, in_slots=4)
    ledger.check()
    again = Ledger(None)
    again.load_state_dict(ledger.state_dict())
    again.check()
    assert again.counts()["tokens"]["generated"] == 5


def test_memory_does_not_grow_with_what_is_past() -> None:
    ledger = Ledger(None)
    sizes = set()
    for key in range(2000):
        ledger.issue(key, key, "p")
        ledger.deliver(key, 1, finished=True)
        ledger.report("g", key + 1, 0)
        ledger.consume([key], 1, {})
        sizes.add(len(msgpack.packb({k: v for k, v in ledger.state_dict().items() if k != "position"})))
    assert max(sizes) < 200
    ledger.check()
