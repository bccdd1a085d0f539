"""A cluster of two nodes that is joined: generators live on both, and a node that leaves takes nothing along."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.first_weights import NAME
from engine.faults import FAULT, FOLDER
from tests.end_to_end.harness import ASYNC, ROOT, Life, wait_until, with_signal
from tools.audit import audit

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Nodes:
    """The cluster of ``nodes.py``."""

    def __init__(self, faults: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.nodes", json.dumps(faults)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )
        self.known: dict[str, Any] = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("{"):
            assert line, "the cluster did not come up"
        return json.loads(line)

    def leave(self) -> None:
        assert self._process.stdin is not None
        print("leave", file=self._process.stdin, flush=True)
        self._answer()

    def actors(self, node: str, kind: bytes = b"Generator") -> list[int]:
        """Process ids of the actors of a kind on a node."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.known[node] and kind in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it ended while we looked
                continue
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def nodes(tmp_path, monkeypatch) -> Iterator[Nodes]:
    """Two nodes with a token; the first generator on the second one stops at its fortieth token."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("5" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    (tmp_path / "run-faults").mkdir()
    made = Nodes({FAULT: "generator.decode:40:STOP", FOLDER: str(tmp_path / "run-faults")})
    yield made
    made.close()


def joins(nodes: Nodes) -> tuple[str, ...]:
    stay = (f"+cluster.resources.{role}.custom.home=1" for role in ("learner", "replay", "judge"))
    return ("cluster=ray", f"cluster.address={nodes.known['address']}", "generator.num_generators=2",
            "learning.updates=6", "cluster.max_restarts=8", "run.quiet=false", *stay, *ASYNC)


def leave_while_decoding(life: Life, nodes: Nodes, pause: bool = False) -> None:
    """The second node dies while its generator holds half-sampled trajectories; nobody samples on if told to pause."""
    stopped = life.stopped_at("generator.decode")
    assert len(nodes.actors("head")) + len(nodes.actors("second")) == 3, "with the evaluator"
    assert nodes.actors("head")
    assert stopped in nodes.actors("second")
    assert not nodes.actors("second", b"Librarian"), "it lies beside the learner, which is at home on the head"
    for other in nodes.actors("head") if pause else ():
        with_signal(other, signal.SIGSTOP)
    nodes.leave()
    with_signal(stopped, signal.SIGKILL)


def went_well(life: Life) -> dict[str, Any]:
    assert life.ended() == 0, life.says()
    assert (life.folder / NAME / "model.safetensors").is_file(), "the first weights, where all machines see them"
    summary = json.loads((life.folder / "summary.json").read_text())
    assert summary["updates"] == 6
    assert summary["ledger"]["closes"]
    assert audit(life.folder)["carried_loss"] == summary["trained_tokens"] > 0
    return summary


@pytest.mark.parametrize("channel", ["shared_memory", "object_store"])
def test_a_node_leaves_and_its_generator_is_started_elsewhere(live, nodes, channel):
    """Shared memory reaches both nodes only because they share this machine."""
    life = live(*joins(nodes), f"weights={channel}")
    leave_while_decoding(life, nodes)
    assert went_well(life)["restarts"] >= 1
    assert "takes its place" in life.says()
    wait_until(lambda: not nodes.actors("head"), "the actors leave the cluster", 30.0)


def test_a_node_leaves_and_nobody_has_room(live, nodes):
    seat = ("+cluster.resources.generator.custom.seat=1", "cluster.start_deadline_s=60")
    life = live(*joins(nodes), *seat)
    leave_while_decoding(life, nodes, pause=True)  # or the run would be over before its place is given up
    wait_until(lambda: "nobody takes its place" in life.says(), "the run goes on with one generator")
    for last in nodes.actors("head"):
        with_signal(last, signal.SIGKILL)
    assert went_well(life)["restarts"] >= 2
    assert re.search(r"generator-\d#2 takes its place", life.says()), "its own place stands, on the head"


def test_more_than_the_cluster_has_is_refused(live, nodes):
    life = live(*joins(nodes), "cluster.resources.learner.gpus=1")
    assert life.ended() == 2
    assert "too little room: 1 GPU are asked for (learner 1), the cluster has 0" in life.says()


def test_a_process_with_another_token_is_told_so(live, nodes, tmp_path, monkeypatch):
    (tmp_path / "other").write_text("7" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    life = live(*joins(nodes))
    assert life.ended() == 2
    assert "does not let this process in" in life.says()
