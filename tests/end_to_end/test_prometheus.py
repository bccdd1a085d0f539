"""A run over Ray exports what the Grafana dashboard asks for, where Ray tells Prometheus to look."""

import json
import os
import re
import signal
import urllib.request
from pathlib import Path

import pytest

from actors.live_metrics import GAUGES
from tests.end_to_end.harness import ASYNC, RAY, wait_until

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def scraped(folders: list[Path]) -> str:
    """What Prometheus would read of a private Ray, by the targets that Ray writes down for it."""
    pages = []
    for file in (file for folder in folders for file in folder.rglob("prom_metrics_service_discovery.json")):
        for target in (target for entry in json.loads(file.read_text()) for target in entry["targets"]):
            try:
                pages.append(urllib.request.urlopen(f"http://{target}/metrics", timeout=5).read().decode())
            except OSError:  # it does not listen yet
                continue
    return "\n".join(pages)


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_finds_every_metric_of_the_dashboard(live):
    life = live(*RAY, *ASYNC, "learning.updates=6", "cluster.dashboard=true", fault="learner.update:3:STOP")
    learner = life.stopped_at("learner.update")
    page = ""

    def all_there() -> bool:
        nonlocal page
        page = scraped(list(Path("/tmp").glob(f"{life._private}*")))
        return all(f"ray_{name}{{" in page for name in GAUGES)

    wait_until(all_there, "every gauge is exported", 120.0, lambda: sorted(set(re.findall(r"ray_perilune_\w+", page))))
    asked = set(re.findall(r"ray_perilune_\w+", DASHBOARD.read_text()))
    assert asked <= set(re.findall(r"ray_perilune_\w+", page))
    (line,) = [line for line in page.splitlines() if line.startswith("ray_perilune_updates{")]
    assert f'run="{life.folder.name}"' in line
    assert float(line.split()[-1]) == 2.0
    os.kill(learner, signal.SIGCONT)
    assert life.ended() == 0, life.says()
    life.nothing_left()
