"""Over Ray, an asynchronous run is one: work overlaps, weights arrive in flight; and nobody listens outside."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.harness import ASYNC, RAY
from tools.audit import audit
from tools.replay import replay

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening(pids) -> set[str]:
    """Addresses on which these processes listen, as /proc spells them."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(entry.readlink()))
            except OSError:  # it ended, or closed it, while we looked
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.ray
@pytest.mark.parametrize("dashboard", [
    pytest.param("false", id="plain"), pytest.param("true", id="dashboard", marks=pytest.mark.slow),
])
def test_an_asynchronous_run_overlaps_and_stays_on_loopback(live, dashboard):
    life = live(*RAY, *ASYNC, "learning.updates=6", f"cluster.dashboard={dashboard}",
                fault="learner.update:2:STOP")
    learner = life.stopped_at("learner.update")
    addresses = listening(life.processes())
    os.kill(learner, signal.SIGCONT)
    assert life.ended() == 0, life.says()
    assert addresses, "Ray listens somewhere"
    assert addresses <= LOOPBACK
    summary = json.loads((life.folder / "summary.json").read_text())
    for name in ("trajectories_with_2_segments", "trajectories_with_2_versions", "swaps_while_decoding",
                 "overlap_seconds"):
        assert summary[name] > 0, name
    assert 0 < summary["max_staleness_seen"] <= 2
    assert summary["trained_tokens"] == summary["ledger"]["tokens"]["carried_loss"] > 0
    audit(life.folder)
    life.nothing_left()
    again = replay(life.folder, life.folder.with_name("again"))
    assert (again["parted"], again["complete"]) == ("", True)
    assert again["repeated"] == summary["weights_digest"], "over Ray or in one process, by the order of its answers"
