"""From prompt to tokens.

- ``sampler``: what any sampler can be asked; ``native``: the one that runs everywhere
- ``cache``: slots and their keys; ``partial``: round budget, cutting a segment, going on from it
- ``stop``: why a response ends; ``repetition``: when it loops
"""
