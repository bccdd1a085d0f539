"""Turn a run folder into one page that opens without a network: ``perilune report RUNDIR [PAGE.html]``."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.errors import PeriluneError
from engine.run_folder import write_atomically
from tools.story.folder import RunStory
from tools.story.sheet import run_sheet


def report(folder: Path, page: Path) -> RunStory:
    """Write the page of a run, whole or cut off.

    Raises:
        RunFolderError: it is no run folder, or a file in it is damaged.
        OSError: the page cannot be written.
    """
    story = RunStory.read(folder)
    write_atomically(page, run_sheet(story).encode())
    return story


def main() -> None:
    """Report the folder on the command line."""
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print("usage: perilune report RUNDIR [PAGE.html]", file=sys.stderr)
        raise SystemExit(2)
    folder = Path(sys.argv[1])
    page = Path(sys.argv[2]) if len(sys.argv) == 3 else folder / "report.html"
    try:
        story = report(folder, page)
    except (PeriluneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    for line in story.missing:
        print(line)
    print(f"page: {page}")


if __name__ == "__main__":
    main()
