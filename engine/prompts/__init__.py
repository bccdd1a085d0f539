"""Where questions come from and in which order they are asked.

Map of the room::

    prompt_set   load_prompts: read, frame, split into train and held-out; PromptSet asserts both apart
    prompt_file  .jsonl, .parquet and Hugging Face dataset folders
    tasks        reasoning-gym tasks by name
    traces       long chains of thought for supervised warm-up, verified against the answer
    draw         PromptDraw: the next prompts, resumable at every point
    curriculum   difficulty, and which prompts count as hard
    priority     success rate over a window, and draws in proportion to 1 - success rate
"""
