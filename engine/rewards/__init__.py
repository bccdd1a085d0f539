"""What an answer is worth: judges, the processes they live in, and the length reward.

Map::

    judge           the port, the choice of a judge by prompt kind, the rules for cut-off responses
    pool            worker processes that are killed from outside when a judgement overruns
    exact_answer    where in a response the answer stands; equality of normalised strings
    math_answer     equality of mathematical answers, first by exact arithmetic, then by sympy
    task_scorer     the scorers of reasoning-gym
    length_penalty  shorter correct answers earn more; soft punishment near the limit

A judge's own failure or timeout is a value (``Outcome``), never reward 0.
"""
