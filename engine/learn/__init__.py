"""One update: groups to samples, samples to packed rows, rows to a step, a step to a version; checkpoints."""
