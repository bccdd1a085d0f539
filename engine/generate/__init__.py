"""From prompt to tokens.

- ``sampler``: what any sampler can be asked; ``samplers``: which there are
- ``native``: the one that runs everywhere
- ``streaming``: one over an engine that decodes by itself, a ``token_engine``; ``vllm_sampler``: vLLM as that engine,
  ``vllm_weights`` and ``vllm_processes``: how weights reach it, and where it lives
- ``cache``: slots and their keys; ``prefill``: how long those that lack keys wait
- ``partial``: round budget, cutting a segment, going on from it
- ``stop``: why a response ends; ``repetition``: when it loops
"""
