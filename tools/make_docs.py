"""Write docs/configuration.md and docs/metrics.md from the source; ``--check`` only compares."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

from engine.config import learning
from engine.config.base import as_dict
from engine.config.run import RunConfig
from engine.metrics import DOCUMENTED

ROOT = Path(__file__).resolve().parent.parent
LOSSES = (
    learning.LossConfig,
    learning.MirrorDescentConfig,
    learning.ClippedConfig,
    learning.PositivesConfig,
    learning.DottedLossConfig,
)
MADE = "<!-- Made by `make docs` from the source: change the source. -->\n"
CONFIGURATION = """# Configuration

A run is one tree of options. `configs/run.yaml` names a preset for each group; the command line exchanges
presets (`loss=grpo`), sets keys (`schedule.batch_groups=16`) and picks a whole experiment
(`experiment=quickstart`), over which it has the last word. Presets may set keys away from the defaults
below. An unknown key, a wrong type or a value that cannot work is refused by name before anything starts;
`--dry-run` prints the resolved options and what the run needs, `--cfg job` only the options. Every run
folder holds its resolved `config.yaml`.

`seed=1` seeds the whole run; `run.seed` follows it.
"""
METRICS = """# Metrics

Every number that a run writes to `metrics.jsonl` and TensorBoard, `room/name_unit`. Values cover one
update, unless the line says otherwise. A name that is not here is refused where it is recorded;
`engine.metrics.document(name, text)` adds one.
"""


def field_texts(kind: type) -> dict[str, str]:
    """Field -> the string under it, inherited fields included."""
    texts: dict[str, str] = {}
    for owner in kind.__mro__:
        if not is_dataclass(owner):
            continue
        (tree,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(tree, ast.ClassDef)
        for field, under in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(under, ast.Expr):
                text = " ".join(str(ast.literal_eval(under.value)).split())
                texts.setdefault(ast.unparse(field.target), text)
    return texts


def _row(key: str, hint: Any, default: Any, text: str) -> str:
    shown = str(hint).replace("typing.", "")
    if isinstance(hint, type) and issubclass(hint, Enum):
        shown, text = ", ".join(f"`{member.value}`" for member in hint), text or inspect.getdoc(hint) or ""
    elif isinstance(hint, type) and not hasattr(hint, "__args__"):
        shown = hint.__name__
    cells = (f"`{key}`", shown, f"`{json.dumps(default, ensure_ascii=False)}`", text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _rows(kind: Any, values: dict[str, Any], prefix: str, skip: frozenset[str] = frozenset()) -> list[str]:
    """One table row for each leaf below ``prefix``, nested groups in place."""
    hints, texts, rows = get_type_hints(kind), field_texts(kind), []
    for name in [field.name for field in fields(kind) if field.name not in skip]:
        key, hint, value = prefix + name, hints[name], values[name]
        nested = is_dataclass(hint)
        rows += _rows(hint, value, key + ".") if nested else [_row(key, hint, value, texts.get(name, ""))]
    return rows


def _table(rows: list[str]) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _presets(group: str) -> list[str]:
    lines = []
    for file in sorted((ROOT / "configs" / group).glob("*.yaml")):
        top = takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
        text = " ".join(line[2:] for line in top if "@package" not in line)
        lines.append(f"- `{group}={file.stem}`" + (f": {text}" if text else ""))
    return [*lines, ""] if lines else []


def _losses() -> list[str]:
    shared, lines = frozenset(field.name for field in fields(learning.LossConfig)), []
    for kind in LOSSES:
        own = kind is not learning.LossConfig
        lines += [f"### {kind.__name__}", "", inspect.getdoc(kind) or "", ""] if own else []
        lines += _table(_rows(kind, as_dict(kind()), "loss.", shared if own else frozenset()))
    return lines


def configuration_page() -> str:
    """docs/configuration.md: every key with its type, default and meaning."""
    lines = [MADE, CONFIGURATION, "## experiment", "", *_presets("experiment"), *_presets("ablation")]
    defaults = as_dict(RunConfig())
    for name, kind in get_type_hints(RunConfig).items():
        if is_dataclass(kind):
            lines += [f"## {name}", "", inspect.getdoc(kind) or "", "", *_presets(name)]
            is_loss = kind is learning.LossConfig
            lines += _losses() if is_loss else _table(_rows(kind, defaults[name], name + "."))
    return "\n".join(lines).replace("``", "`")


def metrics_page() -> str:
    """docs/metrics.md: every metric with its meaning, by room."""
    lines = [MADE, METRICS]
    for room in dict.fromkeys(name.partition("/")[0] for name in DOCUMENTED):
        rows = [f"| `{name}` | {text.replace('|', chr(92) + '|')} |" for name, text in DOCUMENTED.items()
                if name.startswith(room + "/")]
        lines += [f"## {room}", "", "| metric | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """File -> what it should hold."""
    docs = ROOT / "docs"
    return {docs / "configuration.md": configuration_page(), docs / "metrics.md": metrics_page()}


def main() -> None:
    """Write what is out of date; ``--check`` only names it, with exit code 1."""
    check = "--check" in sys.argv[1:]
    stale = [(file, text) for file, text in pages().items()
             if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file, text in stale:
        if not check:
            file.write_text(text, encoding="utf-8")
        print(f"{'out of date, run make docs' if check else 'written'}: {file.relative_to(ROOT)}")
    raise SystemExit(1 if stale and check else 0)


if __name__ == "__main__":
    main()
