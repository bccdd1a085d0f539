"""A prompt source of your own: what is twice n?"""

from engine.config.prompts import PromptsConfig
from engine.records.prompt import Prompt


def prompts(config: PromptsConfig) -> list[Prompt]:
    """What ``prompts.dotted_path=docs.examples.doubling.prompts`` names; held-out ones are split off it."""
    count = config.num_train + config.num_heldout
    return [Prompt.ask(f"double/{n}", f"What is twice {n}?", str(2 * n), kind="near") for n in range(count)]
