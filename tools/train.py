"""Train: ``python -m tools.train experiment=quickstart seed=1 schedule=async cluster=ray``."""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait must not burn the core that another actor needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Compose the configuration and run it."""
    from actors.launch import main as launch

    launch()


if __name__ == "__main__":
    main()
