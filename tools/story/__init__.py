"""What a run folder tells, whole or cut off: ``curves`` over time, ``folder`` with all its files, ``work`` by actor."""
