"""Plain frozen data that may cross a process border.

Legend of axes, for the whole project::

    P  prompts            K  trajectories in a group      N = P * K  trajectories
    B  rows               T  tokens in a row              V  vocabulary          D  width

Log-probabilities are in nats, lengths in tokens, times in seconds.
"""
