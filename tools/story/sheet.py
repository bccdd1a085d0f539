"""A run folder as one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from tools.pages.flow import Branch, flow
from tools.pages.lanes import lanes
from tools.pages.line_plot import Line, line_plot
from tools.pages.page import bullets, figure, grid, legend, section, sheet, tiles
from tools.pages.response import response
from tools.pages.scale import short
from tools.pages.stacks import columns
from tools.pages.svg import tag
from tools.pages.table import html_table
from tools.story.folder import RunStory
from tools.story.selection import selection
from tools.story.work import idle_shares, waits, work_lanes

_SAMPLES = 12
_BINS = 24


def run_sheet(story: RunStory) -> str:
    """The whole page."""
    config, samples = story.config, story.samples
    schedule = config["schedule"]
    under = (f"{schedule['kind']}, bound {schedule['max_staleness']}, loss {config['loss']['name']}, "
             f"seed {config['seed']}, on {config['cluster']['kind']}: {story.path.name}")
    rows, origin = work_lanes(story)
    reasons = [[actor, reason, f"{seconds:.1f}"] for actor, reason, seconds in waits(rows)]
    body = [
        bullets(story.missing), tiles(_facts(story)),
        section("Who worked when", origin, figure("Timeline", "of training, by actor.", lanes(rows, "Timeline")),
                html_table(["actor", "waited for", "seconds"], reasons, words=True) if reasons else ""),
        section("Learning", "", grid(_curves(story, samples))),
        section("What became of everything", "From issued to trained or dropped; widths are shares.",
                grid(_flows(story.ledger))),
        selection(story),
        _read(samples),
        section("Options", "", tag("details", tag("summary", "config.yaml") + tag("pre", escape(
            (story.path / "config.yaml").read_text())))),
    ]
    return sheet(f"Run: {story.name}", under, body)


def _facts(story: RunStory) -> list[tuple[str, str]]:
    accuracy, tokens = story.curves["heldout/accuracy"], story.ledger["tokens"]
    facts = [(str(story.curves.updates), "updates"), (f"{story.seconds:.0f} s", "training")]
    if accuracy:
        facts.append((f"{accuracy[0].value:.2f} to {accuracy[-1].value:.2f}", "held-out accuracy"))
    if story.seconds:
        facts.append((short(tokens["generated"] / story.seconds), "tokens a second"))
    consumed = tokens["carried_loss"] + sum(tokens["masked"].values())
    if consumed:
        facts.append((f"{100 * tokens['carried_loss'] / consumed:.0f} %", "of trained tokens carried loss"))
    return facts + [(f"{100 * share:.0f} %", f"{name} idle") for name, share in idle_shares(story).items()
                    if name.startswith(("generator", "learner"))]


def _plot(story: RunStory, title: str, caption: str, names: Sequence[tuple[str, str]], dots: bool = False,
          floor: float | None = 0.0) -> str:
    lines = [Line(said, [(point.update, point.value) for point in story.curves[name]], dots=dots)
             for name, said in names]
    present = [line for line in lines if line.points]
    key = legend([line.name for line in present]) if len(names) > 1 else ""
    return figure(title, caption, line_plot(present, "update", title, floor=floor) + key)


def _curves(story: RunStory, samples: Sequence[dict[str, Any]]) -> list[str]:
    return [
        _plot(story, "Reward", "of sampled answers.", [("rollout/reward_mean", "score of the judge"),
                                                       ("rollout/total_reward_mean", "with length and penalties")]),
        _plot(story, "Held-out accuracy", "of greedy answers.", [("heldout/accuracy", "greedy")], dots=True),
        _plot(story, "Length", "in tokens.", [("rollout/length_mean_tokens", "sampled answers"),
                                             ("heldout/length_mean_tokens", "greedy held-out answers")]),
        _lengths(samples),
        _plot(story, "Staleness", "of tokens that carried loss, in versions.",
              [("schedule/staleness_mean_versions", "mean"), ("schedule/staleness_max_versions", "largest")]),
        _plot(story, "Gap of log-probs", "between behaviour and learner, nats.",
              [("learn/logprob_gap_mean_nats", "mean absolute gap")]),
        _plot(story, "Tokens a second", "sampled by all generators.",
              [("generate/tokens_per_second", "tokens a second")]),
        _plot(story, "Seconds", "of an update.", [("schedule/update_seconds", "from commit to commit"),
                                                 ("learn/seconds", "of them, learning")]),
    ]


def _lengths(samples: Sequence[dict[str, Any]]) -> str:
    found = [sum(count for _, count in row["segments"]) for row in samples]
    width = max(1, -(-(max(found, default=0) + 1) // _BINS))
    counts = [(str(width * k), float(sum(length // width == k for length in found)))
              for k in range(max(found, default=0) // width + 1)]
    return figure("Lengths", f"of {len(found)} kept samples, in tokens.", columns(counts, "Lengths", "tokens"))


def _flows(ledger: dict[str, Any]) -> list[str]:
    tokens, trajectories = ledger["tokens"], ledger["trajectories"]

    def reasons(counts: dict[str, int]) -> list[tuple[str, float]]:
        return [(reason.replace("_", " "), float(count)) for reason, count in sorted(counts.items())]

    trained = [("carried loss", float(tokens["carried_loss"])),
               *((f"masked: {reason}", count) for reason, count in reasons(tokens["masked"]))]
    by_token = [Branch("trained", sum(count for _, count in trained), 2, trained),
                Branch("dropped", sum(tokens["dropped"].values()), 1, reasons(tokens["dropped"])),
                Branch("waiting", tokens["buffered"] + tokens["in_transit"], 4)]
    whole = [Branch("trained", trajectories["trained"], 2),
             Branch("dropped", sum(trajectories["dropped"].values()), 1, reasons(trajectories["dropped"])),
             Branch("waiting", trajectories["buffered"] + trajectories["in_flight"], 4)]
    return [figure("Tokens", "from generated to loss.", flow("generated", by_token, "Tokens")),
            figure("Trajectories", "from issued to trained.", flow("issued", whole, "Trajectories"))]


def chosen_samples(rows: Sequence[dict[str, Any]], most: int = _SAMPLES) -> list[dict[str, Any]]:
    """From every stretch of the run one response: of most versions, right and wrong in turn where there are both."""
    chosen = []
    stretches = [rows[len(rows) * k // most: len(rows) * (k + 1) // most] for k in range(most)]
    for k, stretch in enumerate(stretches):
        wanted = [row for row in stretch if row["correct"] == (k % 2 == 0)] or stretch
        if wanted:
            chosen.append(max(wanted, key=lambda row: len({version for version, _ in row["segments"]})))
    return chosen


def _read(samples: Sequence[dict[str, Any]]) -> str:
    text = "From the beginning of what was kept to its end. Underlined by the version of the weights that wrote it."
    return section("Responses", text if samples else "None were kept.", grid(map(response, chosen_samples(samples))))
