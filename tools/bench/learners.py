"""One learner beside several that share its work, on the same groups: seconds of an update.

All sides have the same number of compute threads together. The responses are of many lengths, so that what is
measured includes how well they were split; ranks speak over loopback.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from tools.bench.child import Child
from tools.bench.learners_child import Work
from tools.bench.subject import Subject
from tools.bench.timing import Side, spread, take_turns

_DEADLINE_S = 1800.0
COUNTS = (1, 2)


def learners(subject: Subject, count: int) -> Child:
    """So many ranks in processes of their own."""
    amounts = subject.amounts
    work = Work(str(subject.folder), count, max(subject.threads // count, 1), amounts.prompts, amounts.samples,
                amounts.update_tokens)
    command = [sys.executable, "-m", "tools.bench.learners_child", json.dumps(dataclasses.asdict(work))]
    return Child(f"{count} learners", command, _DEADLINE_S)


def measure(subject: Subject, repeats: int, counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """``ratio_update_of_2_learners_vs_1``, with the seconds and what the ranks waited."""
    answers: dict[str, list[dict[str, Any]]] = {}

    def side(name: str, child: Child) -> Side:
        def once() -> float:
            answers.setdefault(name, []).append(child.ask())
            return float(answers[name][-1]["seconds"])

        return once

    with ExitStack() as stack:
        sides = {str(count): side(str(count), stack.enter_context(closing(learners(subject, count))))
                 for count in counts}
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {f"update_seconds_{name}_learners": spread(values) for name, values in times.items()}
    for name, said in answers.items():
        found[f"update_of_{name}_learners"] = {key: value for key, value in said[-1].items() if key != "seconds"}
    first, second = (found[f"update_seconds_{count}_learners"]["median"] for count in counts)
    found[f"ratio_update_of_{counts[1]}_learners_vs_{counts[0]}"] = first / second
    return found
