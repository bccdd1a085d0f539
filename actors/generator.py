"""The generator: shell of a sampler and of the receiving end of the weight channel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actors.object_store import open_object_store
from actors.placement import role_of
from engine.config.cluster import Placement
from engine.config.run import RunConfig
from engine.errors import WeightChannelError
from engine.faults import reach
from engine.generate.samplers import build_sampler
from engine.models.tokenizer import PolicyTokenizer
from engine.records.manifest import Kept, Manifest
from engine.records.span import Span
from engine.records.work import Delivery, GeneratorOrder, GeneratorReport
from engine.trace import now, recording, since, span
from engine.weights.channel import StagedWeights, open_receiver
from engine.weights.kept import read_kept


class Generator:
    """Samples under the weights that it was last sent."""

    def __init__(self, config: RunConfig, name: str, folder: str, run_id: str, slots: int, threads: int) -> None:
        """Build the sampler; weights come with the first order.

        Args:
            config: of the run.
            name: of this incarnation, stamped on every report.
            folder: model folder, for its architecture and tokenizer.
            run_id: names the weight channel.
            slots: trajectories that decode at once.
            threads: compute threads.
        """
        self._name = name
        self._role = role_of(name)
        self._threads = threads
        self._mode = config.schedule.in_flight
        self._traced = config.run.trace
        torch.set_num_threads(threads)
        tokenizer = PolicyTokenizer.from_folder(Path(folder), config.rollout.stop_token_ids)
        # Who takes turns on a device is born asleep.
        self._takes_turns = self._asleep = config.cluster.placement is Placement.colocated
        self.sampler = build_sampler(config, folder, slots=slots, threads=threads, stop_ids=tokenizer.stop_ids,
                                     name=name, asleep=self._asleep)
        self._receiver = open_receiver(config.weights, run_id, open_object_store(config))
        reach(f"{self._role}.start")

    def advance(self, order: GeneratorOrder) -> GeneratorReport:
        """Take weights, cut, admit, decode, in this order; hand over what left its slot."""
        began = now()
        torch.set_num_threads(self._threads)
        with recording(self._traced) as spans:
            woke = self._wake()
            refused = self._take_weights(order)
            deliveries = self.sampler.cut_all() if order.cut_all else []
            serves = not refused or bool(self.sampler.digest)
            self.sampler.submit(order.requests if serves else ())
            for _ in range(order.max_steps):
                if self.sampler.idle and not self.sampler.swap_pending:
                    break
                deliveries += self._step()
                reach(f"{self._role}.decode")
        counts = self.sampler.metrics()
        report = GeneratorReport(
            generator=self._name, deliveries=tuple(deliveries),
            version=self.sampler.version,
            digest=self.sampler.digest,
            refused=refused,
            generated_tokens=int(counts.get("sampled_tokens", 0)),
            tokens_in_slots=self.sampler.tokens_in_slots,
            open_requests=self.sampler.open_requests,
            swaps_while_decoding=int(counts.get("swaps_while_decoding", 0)),
            busy=((began, now()),),
            spans=tuple(spans),
            prefilled_tokens=int(sum(v for k, v in counts.items() if k.startswith("prefilled_"))),
            wake_seconds=woke,
        )
        if self._role == "evaluator":
            report = replace(report, spans=(*report.spans, *self.sleep()))
        return report

    def sleep(self) -> tuple[Span, ...]:
        """Leave a shared device until the next order, as an evaluator does whenever it has answered; for the trace."""
        with recording(self._traced) as spans:
            if self._takes_turns and not self._asleep:
                with span("sleep"):
                    self.sampler.sleep()
                self._asleep = True
        return tuple(spans)

    def _wake(self) -> float:
        """Seconds until cache and weights have their memory again; 0 for who is awake."""
        if not self._asleep:
            return 0.0
        began = now()
        with span("wake"):
            self.sampler.wake()
        self._asleep = False
        return now() - began

    def _step(self) -> list[Delivery]:
        """A step of the sampler, of an engine's as many as arrived; what of it was not prefill is decode."""
        began, before, done = now(), self.sampler.tokens_in_slots, self.sampler.decode_steps
        left = self.sampler.step()
        gone = sum(segment.num_sampled for one in left for segment in one.segments)
        steps = max(self.sampler.decode_steps - done, 1)
        since(began, "decode", steps=steps, tokens=self.sampler.tokens_in_slots + gone - before)
        return left

    def _take_weights(self, order: GeneratorOrder) -> str:
        """Stage, verify and swap; a refusal is reported and the old weights go on serving."""
        if order.weights is None or order.weights.version == self.sampler.version:
            return ""
        try:
            with span("receive"):
                staged = self._receive(order.weights)
                reach(f"{self._role}.swap")
                self.sampler.swap(staged, self._mode)
        except WeightChannelError as error:
            return str(error)
        return ""

    def _receive(self, manifest: Manifest | Kept) -> StagedWeights:
        try:
            return read_kept(manifest) if isinstance(manifest, Kept) else self._receiver.receive(manifest)
        except torch.OutOfMemoryError as error:
            raise WeightChannelError(f"no room to receive version {manifest.version}: {error}") from error

    def metrics(self) -> dict[str, float]:
        """The sampler's counters, and the slots' share in use while requests waited."""
        return self.sampler.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Nothing survives a restart: slots are cut before a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    def close(self) -> None:
        """Free the cache and leave the channel."""
        self.sampler.close()
        self._receiver.close()
