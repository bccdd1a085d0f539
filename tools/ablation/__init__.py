"""Arms beside each other: what ``tools.ablate`` is made of.

- ``arms``: the options of an ablation; ``matching``: equal updates, samples or seconds, equal prompts, no difference
  that nobody declared
- ``cells``: one run of an arm and a seed; ``matrix``: all of them, in order or side by side, taken up again
- ``foreign``: what others did on the machine meanwhile; ``made``: where, when and by which code runs were made
- ``measures``: numbers of one run; ``interval``: over seeds; ``differences``: arms beside the first one; ``causes``: a
  speed-up taken apart
- ``outcome``: all of it as one tree, and as CSV; ``notes``: what to know before its numbers; ``tables``, ``markdown``,
  ``plots``, ``sheet``: as tables, as a file and as a page
- ``simulated``: what the planner says of separate devices, beside what was measured
"""
