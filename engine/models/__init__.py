"""The policy: its network, its tokenizer, and the fast forward that samples from it.

- ``policy``: load, run over packed rows, publish, save; ``packed``: what may look at what in a row
- ``decoder``: one token for each slot over cached keys; ``tokenizer``: chat template and tokens
- ``packaged_model``: models that travel inside a package
"""
