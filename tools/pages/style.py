"""Colours and type of every page: system fonts, light and dark as the reader's system says."""

from __future__ import annotations

# Told apart with the common kinds of colour blindness, and dark or light enough against their ground;
# lines differ in their dashes too.
LIGHT = ("#0b62a8", "#b4490f", "#157a54", "#8446a3", "#8a6500", "#a8326b", "#3d6b75", "#545f6b")
DARK = ("#74b6f5", "#f39c68", "#5ecb9f", "#cba0e6", "#e2c056", "#f28bb6", "#7fc4cf", "#aab5c1")
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2", "6 2 1 2 1 2")

_SHEET = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f5f6f8; --ink: #1c2128; --muted: #56606b;
  --line: #d5dae0; --good: #157a54; --bad: #b4490f; %(light)s }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --panel: #1c2128; --ink: #e4e8ec; --muted: #9aa5b1;
  --line: #343b44; --good: #5ecb9f; --bad: #f39c68; %(dark)s } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 6px; }
p, ul { max-width: 78ch; margin: 6px 0 10px; } .muted, figcaption { color: var(--muted); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(500px, 100%%), 1fr)); gap: 16px; }
figure { margin: 12px 0 0; padding: 12px 14px; background: var(--panel); border-radius: 8px; min-width: 0; }
figcaption { margin-bottom: 6px; } figcaption b { color: var(--ink); font-size: 14px; }
svg { display: block; width: 100%%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--muted); }
svg text.ink { fill: var(--ink); } .axis { stroke: var(--line); stroke-width: 1; fill: none; }
.mark { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .band { stroke: none; opacity: .16; }
.ribbon { opacity: .28; } .wait { opacity: .5; } .whisker { stroke-width: 2; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; margin: 8px 0;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 150px; } td small { display: block; color: var(--muted); }
thead th { color: var(--muted); font-weight: 600; } .legend { display: flex; flex-wrap: wrap; gap: 4px 18px;
  font-size: 13px; margin: 8px 0 0; } .legend svg { width: 28px; flex: none; } .legend span { display: flex;
  align-items: center; gap: 6px; }
td.marked { font-weight: 600; } td.marked small { font-weight: 400; }
.words th, .words td { text-align: left; } .notes li { margin: 3px 0; }
pre { background: var(--panel); padding: 10px 12px; border-radius: 6px; overflow-x: auto;
  font-size: 12px; } .tiles { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 14px 0 4px; }
.tiles b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.response { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.75 ui-monospace, "DejaVu Sans Mono", monospace;
  margin: 6px 0; } .response span { border-bottom: 2px solid; padding-bottom: 1px; }
.response sub { font: 10px system-ui, sans-serif; color: var(--muted); padding: 0 3px 0 1px; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
"""


def style_sheet() -> str:
    """The text of the style element: classes ``s0``... stroke, ``f0``... fill and ``u0``... underline in a colour."""
    variables = [" ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours)) for colours in (LIGHT, DARK)]
    series = "".join(
        f".s{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }} .line.s{i} {{ stroke-dasharray: {dash}; }} "
        f".response .u{i} {{ border-bottom-color: var(--c{i}); }}\n"
        for i, dash in enumerate(DASHES)
    )
    return _SHEET % {"light": variables[0], "dark": variables[1]} + series
