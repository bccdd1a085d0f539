"""Objectives over tensors: no model, no optimiser, no actor.

Map of the room::

    objective       what a loss receives and returns, the protocol, build_loss
    baseline        rewards of a group -> advantages
    mirror_descent  Kimi k1.5, eq. 3
    clipped         PPO without a critic, GRPO, Dr. GRPO, DAPO, RLOO, GSPO, CISPO, decoupled PPO
    positives       ReST: likelihood of the correct responses
    likelihood      supervised negative log-likelihood
    importance      weights for the gap between the behaviour policy and the anchor
    kl              estimator k3, penalty towards a fixed policy, entropy bonus

M loss-carrying tokens of N trajectories, concatenated, make one micro-batch; other axes as in
``engine.records``. Every loss is to be minimised and is a sum over micro-batches: its scale is known
before the first backward pass, so how trajectories are packed changes nothing.
"""
