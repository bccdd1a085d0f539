"""The console script: ``perilune <verb> ...`` is ``python -m tools.<verb> ...``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from engine.errors import nearest_name


def verbs() -> dict[str, str]:
    """Verb -> first line of its documentation."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem not in ("__init__", "perilune"):
            found[file.stem] = file.read_text().split('"""')[1].strip().splitlines()[0]
    return found


def main() -> None:
    """Run a verb, or list them."""
    known = verbs()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print("perilune <verb> [options]\n")
        for name, text in known.items():
            print(f"  {name:14s} {text}")
        return
    verb = sys.argv.pop(1)
    if verb not in known:
        print(f"error: unknown verb {verb!r}: {nearest_name(verb, known)}", file=sys.stderr)
        raise SystemExit(2)
    runpy.run_module(f"tools.{verb}", run_name="__main__")


if __name__ == "__main__":
    main()
