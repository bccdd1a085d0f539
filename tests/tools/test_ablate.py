from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.launch import CONFIG_FOLDER
from tests.tools.run_folders import write_run
from tests.tools.story.test_work import write_trace
from tools import ablate
from tools.ablation import matrix as matrix_room
from tools.ablation.arms import ArmConfig
from tools.ablation.cells import Ended
from tools.ablation.matching import match_arms, undeclared
from tools.ablation.matrix import cells_of
from tools.report import report

SHIPPED = sorted(file.stem for file in (CONFIG_FOLDER / "ablation").glob("*.yaml"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_AHEAD = ["schedule=async", "schedule.max_staleness=2"]
SIX = [ArmConfig("sync"), ArmConfig("no_tail", _AHEAD, "sync", "nobody waits for the longest response"),
       ArmConfig("partial", [*_AHEAD, "schedule.round_budget_tokens=8"], "no_tail", "partial rollouts"),
       ArmConfig("ahead", _AHEAD, "partial", "overlap"), ArmConfig("further", _AHEAD, "ahead", "a bound of three"),
       ArmConfig("another_name", [], "sync", "processes alone")]
"""A chain and a branch, with names as long as those that are shipped."""
# What a reader would trip over: texts of one drawing that lie on each other, anything wider than the page, and text
# that does not stand out from its ground (WCAG 2.1, 1.4.3).
LOOK = r"""
const found = [];
for (const svg of document.querySelectorAll("svg")) {
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
    if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
        Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3) found.push(a + " on " + b); }));
}
if (document.documentElement.scrollWidth > window.innerWidth) found.push("wider than the page");
for (const e of document.querySelectorAll("h1, h2, p, figure"))
  if (e.getBoundingClientRect().right > window.innerWidth) found.push("cut off: " + e.textContent.slice(0, 40));
const parts = said => said.match(/[\d.]+/g).map(Number);
const bright = said => { const [r, g, b] = parts(said).map(c => c / 255).map(
  c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => { for (; e; e = e.parentElement) {
  const said = getComputedStyle(e).backgroundColor, p = parts(said); if (p.length < 4 || p[3] > 0) return said; }
  return "rgb(255, 255, 255)"; };
let looked = 0;
for (const e of document.body.querySelectorAll("*")) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || e.tagName === "SCRIPT" || !e.getBoundingClientRect().width) continue;
  const style = getComputedStyle(e), ink = bright(e instanceof SVGElement ? style.fill : style.color);
  const [low, high] = [ink, bright(ground(e))].sort((a, b) => a - b);
  looked++;
  if ((high + 0.05) / (low + 0.05) < 4.5) found.push("faint: " + e.textContent.slice(0, 40));
}
if (looked < 20) found.push("only " + looked + " texts were looked at");
document.title = "LOOKED " + JSON.stringify(found);
"""


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["ablate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_ablation_is_whole_and_in_the_guide(name):
    config = ablate.load([f"ablation={name}"])
    assert config.name == name
    assert config.about
    assert f"`{name}`" in (CONFIG_FOLDER.parent / "docs/ablation.md").read_text()


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "async_vs_sync" else [pytest.mark.slow]) for name in SHIPPED])
def test_every_shipped_arm_can_run_and_declares_its_differences(name):
    config = ablate.load([f"ablation={name}"])
    assert undeclared(config, match_arms(config)) == []


@pytest.mark.parametrize(("arguments", "said"), [
    (["ablation=async_vs_snyc"], "async_vs_sync"),
    ([], "ablation"),
    (["ablation=staleness", "only=[bound_9]"], "did you mean 'bound_"),
    (["ablation=staleness", "metrics=[learn/los]"], "did you mean 'learn/loss'"),
    (["ablation=staleness", "seds=[1]"], "did you mean 'seeds'"),
])
def test_a_mistyped_word_is_refused_with_the_nearest(monkeypatch, capsys, arguments, said):
    assert call(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


def test_what_lies_there_is_reported_without_a_run(matrix, monkeypatch, capsys):
    config, _ = matrix(cut=("ahead", 1), report_only=True)
    monkeypatch.setattr(ablate, "load", lambda overrides: config)
    assert call(monkeypatch) == 1, "one run is not complete"
    said = capsys.readouterr().out
    assert "ahead seed 1: The run was cut off" in said
    assert "page: " in said
    folder = Path(config.dir)
    assert json.loads((folder / "ablation.json").read_text())["name"] == "trial"
    assert {file.suffix for file in folder.glob("ablation.*")} == {".json", ".csv", ".md", ".html"}


def test_differences_that_nobody_declared_are_warned_of(ablation, capsys):
    arms = [ArmConfig("a"), ArmConfig("b", ["schedule.batch_groups=2"])]
    base = ["experiment=smoke", "learning.keep_checkpoints=${schedule.batch_groups}"]
    ablate.ablate(ablation(base=base, arms=arms, report_only=True))
    assert "warning: Arms a and b differ in more than they say: learning.keep_checkpoints" in capsys.readouterr().out


def test_the_command_is_written_down_beside_every_run_and_in_the_report(ablation, monkeypatch, capsys):
    config = ablation(seeds=[0])
    monkeypatch.setattr(ablate, "load", lambda overrides: config)

    def play(cell, deadline_s, started):
        write_run(cell.folder, *cell.arm.overrides[1:-1], seed=cell.seed)
        return Ended("", 2.0, 0.5, "2026-01-02 03:04:05")

    monkeypatch.setattr(matrix_room, "run_cell", play)
    assert call(monkeypatch, "ablation=trial", "base=[a b]") == 0
    made = json.loads((Path(config.dir) / "ablation.json").read_text())["made"]
    assert made["commands"] == ["perilune ablate ablation=trial 'base=[a b]'"]
    assert made["versions"][0]["torch"]
    config = ablation(seeds=[0], report_only=True)
    assert call(monkeypatch, "ablation=trial", "report_only=true") == 0
    assert json.loads((Path(config.dir) / "ablation.json").read_text())["made"] == made, "a report makes no run"
    assert "Others used more than 10% of the machine's cores" in capsys.readouterr().out


def test_every_table_of_a_page_scrolls_by_itself(matrix):
    config, _ = matrix(arms=SIX, report_only=True)
    ablate.ablate(config)
    page = (Path(config.dir) / "ablation.html").read_text()
    assert page.count("<table") >= 4
    assert page.count("<table") == page.count('<div class="scroll"><table')
    assert ".scroll { overflow-x: auto; }" in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert max(len(word) for word in re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]).split()) < 80


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at pages with")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (800, "light")])
def test_pages_are_legible(matrix, tmp_path, width, scheme):
    config, cells = matrix(cut=("ahead", 1), arms=SIX, report_only=True)
    ablate.ablate(config)
    write_trace(cells[0].folder)
    report(cells[0].folder, tmp_path / "report.html")
    for page in (Path(config.dir) / "ablation.html", tmp_path / "report.html"):
        looked, asked = tmp_path / "looked.html", "@media (prefers-color-scheme: dark)"
        text = page.read_text().replace("</body>", f"<script>{LOOK}</script></body>")
        assert text.count(asked) == 1
        looked.write_text(text.replace(asked, "@media all" if scheme == "dark" else "@media not all"))
        assert CHROMIUM is not None
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
                   f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", looked.as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        (found,) = re.findall(r"<title>LOOKED (.*?)</title>", seen)
        assert json.loads(found) == []


@pytest.mark.slow
def test_an_ablation_runs_goes_on_and_takes_over(tmp_path):
    command = [sys.executable, "-m", "tools.ablate", "ablation=staleness", f"dir={tmp_path}", "seeds=[0]",
               "base=['experiment=smoke','schedule=async']", "only=[bound_0,bound_1]", "amount=2"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "[2/2] bound_1 seed 0: 2 updates" in first
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert again.count("taken over") == 2
    config = ablate.load(command[3:])
    assert all(cell.summary for cell in cells_of(config, match_arms(config)))
