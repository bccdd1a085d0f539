"""Perilune's library: it thinks and knows no processes.

Rooms, from the top of the import order downwards:

- ``evaluation``, ``preflight``: a pinned look at a policy; refusals before anything starts
- ``prompts``, ``learn``, ``replay``, ``weights``: which question next, one update, what is in flight,
  how weights travel
- ``generate``, ``rewards``, ``losses``: from prompt to tokens, from tokens to verdict, from verdicts to
  a scalar
- ``models``, ``ops``: networks, and the hot arithmetic beneath them
- ``records``, ``metrics``, ``run_folder``: plain data and what a run leaves on disk
- ``config``, ``errors``: options and refusals
"""
