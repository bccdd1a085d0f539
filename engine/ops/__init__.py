"""Numerical ops: for each a front door that checks its arguments, and a readable reference.

The compiled kernels of ``csrc/`` serve where they were built; everywhere else the references do. Logits,
log-probabilities and entropies are float32 whatever the weights are, and a token's values never depend on
its neighbours.

Values - targets, rows, slots, positions, temperatures - are looked at where that costs no wait. Kernels on a GPU do
not raise over one out of range: they read and write nothing there, and answer NaN.
"""
