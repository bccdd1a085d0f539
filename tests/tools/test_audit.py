from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import LedgerError
from engine.records.trajectory import DropReason
from engine.replay.ledger import Ledger
from tools.audit import audit


def journal(folder: Path) -> Ledger:
    ledger = Ledger(folder / "ledger.msgpack")
    for key in (1, 2, 3):
        ledger.issue(key, 0, "p")
    ledger.dispatch([1, 2, 3], "g")
    ledger.deliver(1, 4, finished=True)
    ledger.deliver(2, 6, finished=True)
    ledger.report("g", 10, 0)
    return ledger


def test_a_whole_run_is_counted_from_its_journal(tmp_path: Path) -> None:
    ledger = journal(tmp_path)
    ledger.consume([1, 2], carried=7, masked={"stale": 3})
    ledger.drop([3], DropReason.end_of_run)
    ledger.close()
    found = audit(tmp_path)
    assert found == {"issued": 3, "trained": 2, "dropped": {"end_of_run": 1}, "carried_loss": 7, "checkpoints": 0}


def test_a_trajectory_trained_twice_is_found(tmp_path: Path) -> None:
    ledger = journal(tmp_path)
    ledger.consume([1], carried=4, masked={})
    ledger._write("consume", [1], 4, {})
    ledger.close()
    with pytest.raises(LedgerError, match="trained before"):
        audit(tmp_path)


def test_tokens_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    ledger = journal(tmp_path)
    ledger._write("consume", [1, 2], 9, {})
    ledger.close()
    with pytest.raises(LedgerError, match="10 delivered"):
        audit(tmp_path)


def test_a_summary_that_says_something_else_is_found(tmp_path: Path) -> None:
    ledger = journal(tmp_path)
    ledger.consume([1, 2], carried=10, masked={})
    ledger.drop([3], DropReason.end_of_run)
    counts = ledger.counts()
    ledger.close()
    (tmp_path / "summary.json").write_text(json.dumps({"ledger": counts}))
    assert audit(tmp_path)["trained"] == 2
    counts["trajectories"]["trained"] = 3
    (tmp_path / "summary.json").write_text(json.dumps({"ledger": counts}))
    with pytest.raises(LedgerError, match="trained"):
        audit(tmp_path)
