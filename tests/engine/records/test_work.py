from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.records.version import PolicyVersion
from engine.records.work import GeneratorOrder, GeneratorReport, Request


def test_an_order_may_ask_for_nothing_but_decoding() -> None:
    order = GeneratorOrder()
    assert (order.requests, order.weights, order.cut_all) == ((), None, False)
    assert order.max_steps > 0


def test_a_request_is_uncut_unless_told() -> None:
    request = Request(1, 0, np.zeros(2, np.int32), np.zeros(0, np.int32), 8)
    assert request.round_budget_tokens is None
    assert request.temperature == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.attempt = 1  # type: ignore[misc]


def test_a_report_refuses_nothing_unless_it_says_why() -> None:
    report = GeneratorReport("g", (), PolicyVersion(0, 0), "d")
    assert (report.refused, report.generated_tokens, report.tokens_in_slots) == ("", 0, 0)
