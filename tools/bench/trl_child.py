"""TRL's GRPOTrainer as one side of a comparison: a process that makes one optimiser step for each line.

``python -m tools.bench.trl_child '<json>'`` with the fields of :class:`Job`. It runs TRL at its quickest
here: bf16 weights and activations, no autocast, no gradient checkpointing, no entropy logging by choice.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

from tools.bench.child import Replies


@dataclass(frozen=True, slots=True)
class Job:
    """What one update is made of."""

    folder: str
    """Model and tokenizer."""
    questions: list[list[dict[str, str]]]
    """Chats, ``prompts`` of them for each update, in order."""
    prompts: int
    samples: int
    """Completions of each prompt."""
    tokens: int
    """Length of every completion."""
    rows: int
    """Completions of one micro-batch."""
    threads: int
    scratch: str
    """Folder that the trainer may write to."""


def random_rewards(completions: list[Any], **_: Any) -> list[float | None]:
    """Rewards with spread, so that no completion has advantage 0."""
    return [random.gauss(0.0, 1.0) for _ in completions]


def arguments_of(job: Job) -> Any:
    """TRL's options: the same update as ours, beta 0, one optimiser step for each batch of samples."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=job.scratch, use_cpu=True, report_to=[], logging_steps=1000, save_strategy="no",
        disable_tqdm=True, seed=0, shuffle_dataset=False, remove_unused_columns=False,
        bf16=False, gradient_checkpointing=False, model_init_kwargs={"dtype": "bfloat16"},
        per_device_train_batch_size=job.rows,
        gradient_accumulation_steps=job.prompts * job.samples // job.rows,
        num_generations=job.samples, max_completion_length=job.tokens,
        max_steps=len(job.questions) // job.prompts, learning_rate=1e-6, lr_scheduler_type="constant",
        beta=0.0, temperature=1.0, num_iterations=1,
        generation_kwargs={"min_new_tokens": job.tokens, "max_new_tokens": job.tokens},
    )


def main() -> None:
    """Train step by step; after each, say how long it took and wait for the next line."""
    job = Job(**json.loads(sys.argv[1]))
    replies = Replies()
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    torch.set_num_threads(job.threads)
    began, seen = 0.0, 0

    class Pace(TrainerCallback):
        """One step for each line that arrives."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            nonlocal began
            replies.wait()
            began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal began, seen
            seconds = time.perf_counter() - began
            tokens = int(trainer.state.num_input_tokens_seen)
            replies.send({"seconds": seconds, "tokens": tokens - seen})
            seen = tokens
            replies.wait()
            began = time.perf_counter()

    trainer = GRPOTrainer(
        job.folder, reward_funcs=random_rewards, args=arguments_of(job),
        train_dataset=Dataset.from_list([{"prompt": chat} for chat in job.questions]), callbacks=[Pace()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
