import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME

from engine import metrics
from engine.errors import ConfigError, RunFolderError
from engine.meters import Meters
from engine.metrics import DOCUMENTED, LAYOUT, MetricsWriter, document
from engine.records.trajectory import DropReason, MaskReason


@pytest.fixture
def documented(monkeypatch):
    monkeypatch.setattr(metrics, "DOCUMENTED", dict(DOCUMENTED))


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_every_name_has_room_and_meaning():
    for name, text in DOCUMENTED.items():
        assert metrics._NAME.fullmatch(name), name
        assert text.strip() == text
        assert text


def test_every_reason_of_the_ledger_has_its_metrics():
    for reason in DropReason:
        assert f"ledger/dropped_{reason}_tokens" in DOCUMENTED
        assert f"ledger/dropped_{reason}_trajectories" in DOCUMENTED
    for reason in MaskReason:
        assert f"ledger/masked_{reason}_tokens" in DOCUMENTED


def test_undocumented_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'learn/loss'"):
        Meters().sum("learn/los", 1.0)
    writer = MetricsWriter(tmp_path)
    with pytest.raises(ValueError, match="not documented"):
        writer.write(1, {"learn/loss": 1.0, "learn/unheard": 1.0})
    writer.close()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_metric_of_ones_own_is_documented_once(documented):
    document("reward/style_mean", "mean style score")
    document("reward/style_mean", "mean style score")
    Meters().mean("reward/style_mean", 1.0)
    with pytest.raises(ValueError, match="already"):
        document("reward/style_mean", "something else")
    for name, text in (("Loss", "a loss"), ("a/b c", "a loss"), ("a/b", " ")):
        with pytest.raises(ValueError, match="room/name_unit"):
            document(name, text)


def test_one_json_line_per_write_and_scalars_for_tensorboard(tmp_path):
    clock = Clock()
    writer = MetricsWriter(tmp_path, clock=clock)
    clock.now += 1.5
    writer.write(1, {"learn/loss": 0.5})
    clock.now += 1
    writer.write(2, {"learn/loss": 0.25, "heldout/accuracy": 1})
    writer.close()
    writer.close()
    assert lines_of(tmp_path) == [
        {"update": 1, "seconds": 1.5, "learn/loss": 0.5},
        {"update": 2, "seconds": 2.5, "learn/loss": 0.25, "heldout/accuracy": 1.0},
    ]
    scalars = events_of(tmp_path).Scalars("learn/loss")
    assert [(event.step, event.value) for event in scalars] == [(1, 0.5), (2, 0.25)]


def test_tensorboard_groups_the_documented_names(tmp_path):
    """As its own plugin reads the layout, and with tags that match what is written."""
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"generate/tokens_per_second": 0.5})
    writer.close()
    events = events_of(tmp_path)
    assert CONFIG_SUMMARY_TAG in events.PluginTagToContent(PLUGIN_NAME)
    (event,) = events.Tensors(CONFIG_SUMMARY_TAG)
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert len(tags) == sum(len(names) for charts in LAYOUT.values() for names in charts.values())
    for tag in tags:
        assert [name for name in DOCUMENTED if re.match(tag, name)] == [tag.strip("^$").replace("\\", "")]
    assert "^generate/tokens_per_second$" in tags
    assert [event.value for event in events.Scalars("generate/tokens_per_second")] == [0.5]


def test_what_is_not_finite_is_null_in_json(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"learn/loss": float("nan"), "learn/gradient_norm": float("inf")})
    writer.close()
    (line,) = lines_of(tmp_path)
    assert line["learn/loss"] is None
    assert line["learn/gradient_norm"] is None
    assert math.isnan(events_of(tmp_path).Scalars("learn/loss")[0].value)


def test_a_resume_forgets_later_updates_and_the_clock_goes_on(tmp_path):
    clock = Clock()
    writer = MetricsWriter(tmp_path, clock=clock)
    for update in (1, 2, 3):
        clock.now += 10
        writer.write(update, {"learn/loss": float(update)})
    writer.close()
    later = Clock(5.0)
    writer = MetricsWriter(tmp_path, clock=later)
    writer.truncate(2)
    later.now += 1
    writer.write(3, {"learn/loss": 30.0})
    writer.close()
    assert [(line["update"], line["seconds"]) for line in lines_of(tmp_path)] == [(1, 10), (2, 20), (3, 21)]
    assert lines_of(tmp_path)[2]["learn/loss"] == 30.0
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [event.value for event in events_of(tmp_path).Scalars("learn/loss")] == [1.0, 2.0, 30.0]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"learn/loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 2, "lea')
    writer = MetricsWriter(tmp_path)
    writer.write(2, {"learn/loss": 2.0})
    writer.close()
    assert [line["update"] for line in lines_of(tmp_path)] == [1, 2]


def test_a_disk_that_refuses_is_named(tmp_path):
    writer = MetricsWriter(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot grow"):
        writer.write(1, {"learn/loss": 1.0})
    writer.close()


def test_wandb_missing_is_a_configuration_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"run\.wandb=True: pip install wandb"):
        MetricsWriter(tmp_path, wandb=True)


def test_wandb_receives_what_the_file_receives(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values["learn/loss"])),
        finish=lambda: calls.append("finished"),
    )
    fake = SimpleNamespace(init=lambda **options: calls.append(options["config"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = MetricsWriter(tmp_path, wandb=True, config={"seed": 1})
    writer.write(4, {"learn/loss": 0.5})
    writer.close()
    writer.close()
    assert calls == [{"seed": 1}, (4, 0.5), "finished"]
