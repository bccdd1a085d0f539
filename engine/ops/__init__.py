"""Numerical ops: for each a front door that checks its arguments, and a readable reference.

The compiled kernels of ``csrc/`` serve where they were built; everywhere else the references do. Logits,
log-probabilities and entropies are float32 whatever the weights are, and a token's values never depend on
its neighbours.
"""
