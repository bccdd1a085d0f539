"""Repeat a recorded run in one process and compare its weights: ``perilune replay RUNDIR [INTO]``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before torch is loaded, as in the run itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def sentences(report: dict[str, Any]) -> list[str]:
    """What a person wants to know of a repeated run."""
    lines = [f"{report['updates']} updates agree, {report['entries']} of {report['recorded_entries']} entries"]
    if report["judged_otherwise"]:
        lines.append(f"judged otherwise now, taken as recorded: trajectories {report['judged_otherwise']}")
    lines.append(f"recorded digest  {report['recorded'] or '-'}")
    lines.append(f"repeated digest  {report['repeated'] or '-'}")
    if report["parted"]:
        lines.append(report["parted"])
    elif not report["complete"]:
        lines.append("the record ends before the run did: it agrees as far as it goes")
    elif not report["recorded"]:
        lines.append("the recorded run left no summary to compare the last digest with")
    else:
        same = report["recorded"] == report["repeated"]
        lines.append("the same weights" if same else "the journals agree, the last weights do not")
    return lines


def agrees(report: dict[str, Any]) -> bool:
    """Nothing that was recorded came out otherwise."""
    digests = {report["recorded"], report["repeated"]} - {""}
    return not report["parted"] and (not report["complete"] or len(digests) == 1)


def replay(recorded: Path, into: Path) -> dict[str, Any]:
    """Repeat the run in a folder; the report of ``actors.reenactment.reenact``.

    Raises:
        PeriluneError: the folder is no run's, or the run cannot be repeated.
    """
    from actors.launch import saved
    from actors.reenactment import reenact

    return reenact(saved(recorded), recorded, into)


def main() -> None:
    """Repeat the folder on the command line; exit code 1 where the weights differ."""
    from engine.errors import PeriluneError

    if len(sys.argv) not in (2, 3):
        print("usage: perilune replay RUNDIR [INTO]", file=sys.stderr)
        raise SystemExit(2)
    try:
        with tempfile.TemporaryDirectory(prefix="perilune-replay-") as scratch:
            into = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(scratch) / "run"
            report = replay(Path(sys.argv[1]), into)
    except (PeriluneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(sentences(report)))
    raise SystemExit(0 if agrees(report) else 1)


if __name__ == "__main__":
    main()
