from __future__ import annotations

import torch

from engine.models.policy import published_tensors
from engine.records.trajectory import FinishReason
from tools.bench.subject import Subject, drain, requests


def test_every_side_is_asked_the_same_sums(subject: Subject) -> None:
    assert len(subject.prompts) == len(subject.tokens) == subject.amounts.sequences
    assert len({prompt.prompt_id for prompt in subject.prompts}) == len(subject.prompts)
    question = subject.chat(1)[-1]["content"]
    assert question in subject.tokenizer.decode(subject.tokens[1])
    assert "What is" in question


def test_responses_end_at_the_fixed_length_and_nowhere_else(subject: Subject) -> None:
    network = subject.network()
    sampler = subject.sampler(network, slots=2, response_tokens=7)
    sampler.submit(requests(subject.tokens, 10, response_tokens=7))
    deliveries = drain(sampler)
    assert sorted(d.trajectory_id for d in deliveries) == [10, 11, 12, 13]
    assert {d.finish_reason for d in deliveries} == {FinishReason.length}
    assert {len(d.segments[0].token_ids) for d in deliveries} == {7}


def test_the_small_model_computes_in_bfloat16(subject: Subject) -> None:
    assert {t.dtype for t in published_tensors(subject.network()).values()} == {torch.bfloat16}
