"""vLLM as an engine of the streaming sampler: the only file that imports vllm.

vLLM's asynchronous engine keeps its scheduler and its model in processes of their own. That spares the generator's
process their threads and their patches of torch, an engine that crashes is an error here and no death, and
decoding goes on while the generator talks to others; new weights cost one more copy (``vllm_weights``). The event
loop turns only inside calls: answers wait in the socket meanwhile.

New weights come through vLLM's own registry of weight transfers. The scheduler is paused, ``keep`` while requests
are open and ``wait`` when there are none, so every token is sampled under whole weights; the engine stamps each
answer with the version it served. Keys are shared only under one salt, the version at admission, and are thrown
away at a swap unless they shall stay.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensInput, tokens_input
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.models import ModelRegistry
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from engine.config.rollout import GeneratorConfig
from engine.config.schedule import InFlight
from engine.generate.token_engine import Arrival, Ask
from engine.generate.vllm_calls import missing_call
from engine.generate.vllm_processes import Keeper, cache_bytes, end_with_owner, engine_seed, inherited, named
from engine.generate.vllm_weights import Layout, Parcel, unpack

TRANSFER = "perilune"
T = TypeVar("T")


@dataclass
class Nothing(WeightTransferInitInfo):
    """Both ends know all they need."""


@dataclass
class Delivered(WeightTransferUpdateInfo):
    """A whole version, as :meth:`Parcel.write` describes it."""

    path: str
    entries: list[list[Any]]


class StagedTransfer(WeightTransferEngine[Nothing, Delivered]):
    """Runs in vLLM's worker: loads a version that the generator laid into shared memory."""

    init_info_cls = Nothing
    update_info_cls = Delivered

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        end_with_owner()

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Nothing is shared before the first version."""

    def start_weight_update(self) -> None:
        """Undo what was done to the weights after loading, layer by layer, as they arrive."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load; the copies into the model are done when this returns, or queued on the stream that decodes."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Delivered) -> None:
        """Copy every tensor into the model."""
        self.model.load_weights(unpack(update_info.path, update_info.entries))

    def finish_weight_update(self) -> None:
        """Arrange the weights for decoding again."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between two versions."""


WeightTransferEngineFactory.register_engine(TRANSFER, StagedTransfer)


class KnowsTransfer:
    """Part of vLLM's worker: importing it there, in another process, registers the transfer."""


def missing_support(architecture: Mapping[str, Any]) -> str:
    """Why vLLM cannot decode a model here, from its config.json; empty when it can."""
    names = architecture.get("architectures") or []
    known = ModelRegistry.get_supported_archs()
    if not any(name in known for name in names):
        return f"vLLM knows no architecture {', '.join(names) or '(none named)'}: use generator=native"
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        size = architecture.get("head_dim") or architecture["hidden_size"] // architecture["num_attention_heads"]
        if size not in sizes:
            return (f"vLLM on a CPU knows no attention heads of width {size}, only {', '.join(map(str, sizes))}: "
                    "use generator=native")
    return ""


class VllmEngine:
    """One vLLM engine; see :class:`engine.generate.token_engine.TokenEngine`."""

    def __init__(self, folder: str, architecture: Any, config: GeneratorConfig, *, slots: int, context: int,
                 stop_ids: Iterable[int], seed: int, threads: int, name: str, alone: bool = False) -> None:
        """Start it with weights made up.

        Args:
            folder: holds config.json.
            architecture: the same, as transformers reads it.
            config: precision and ``vllm`` section.
            slots: requests that decode at once.
            context: tokens of the longest request.
            stop_ids: tokens that end a request.
            seed: of the run; requests bring their own, except on a CPU.
            threads: compute threads.
            name: of the generator, for errors.
            alone: it has a GPU of its own, and may size its cache by what is free there.

        Raises:
            ActorError: it does not start.
        """
        self._config, self._name = config.vllm, name
        self._stop_ids = list(stop_ids)
        self._layout = Layout.of(architecture)
        self._parcel, self._keeper = Parcel(name), Keeper()
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news: asyncio.Queue[Arrival | BaseException] = asyncio.Queue()
        self._sleeps = current_platform.is_sleep_mode_available()
        options = AsyncEngineArgs(
            model=folder, dtype=config.precision.value, load_format="dummy", skip_tokenizer_init=True,
            generation_config="vllm", logprobs_mode="processed_logprobs", seed=engine_seed(seed, name),
            max_model_len=context, max_num_seqs=slots,
            max_num_batched_tokens=config.vllm.max_num_batched_tokens or None,
            enforce_eager=config.vllm.enforce_eager, enable_prefix_caching=config.vllm.prefix_caching,
            gpu_memory_utilization=config.vllm.gpu_memory_utilization, enable_sleep_mode=self._sleeps,
            kv_cache_memory_bytes=cache_bytes(architecture, config, slots, context,
                                              alone and not current_platform.is_cpu()),
            disable_log_stats=True, weight_transfer_config=WeightTransferConfig(backend=TRANSFER),
            worker_extension_cls=f"{__name__}.{KnowsTransfer.__name__}",
        )
        deadline_s = self._config.start_timeout_s
        with inherited(threads, deadline_s), named(name, "starting vLLM", deadline_s):
            self._llm = self._keeper.start(lambda: self._loop.run_until_complete(_open(options)), deadline_s)

    def _run(self, work: Coroutine[Any, Any, T], during: str, deadline_s: float) -> T:
        """Turn the loop until this is done."""
        with named(self._name, during, deadline_s):
            return self._loop.run_until_complete(asyncio.wait_for(work, deadline_s))

    def start(self, asked: Sequence[Ask]) -> None:
        """See :class:`TokenEngine`."""
        self._run(self._start(asked), "admitting", self._config.step_timeout_s)

    async def _start(self, asked: Sequence[Ask]) -> None:
        for ask in asked:
            answers = await self._llm.add_request(ask.key, *self._request(ask))
            self._tasks[ask.key] = asyncio.create_task(self._follow(ask.key, answers))

    def _request(self, ask: Ask) -> tuple[TokensInput, SamplingParams]:
        # A draw of a request that is prefilled in parts is taken back by an offset, which streams of a CPU lack.
        how = SamplingParams(
            temperature=ask.temperature, max_tokens=ask.limit, logprobs=0, ignore_eos=True,
            seed=None if current_platform.is_cpu() else ask.seed, stop_token_ids=self._stop_ids, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        return tokens_input(ask.tokens, cache_salt=ask.salt), how

    async def _follow(self, key: str, answers: RequestOutputCollector) -> None:
        finished = False
        try:
            while not finished:
                output = await answers.get()
                assert isinstance(output, RequestOutput)
                self._news.put_nowait(_arrival(key, output))
                finished = output.finished
        except Exception as error:  # noqa: BLE001 - raised where the news are read
            self._news.put_nowait(error)

    def receive(self) -> list[Arrival]:
        """See :class:`TokenEngine`; whatever has arrived for one request is one arrival."""
        return self._run(self._read(), "sampling", self._config.step_timeout_s)

    async def _read(self) -> list[Arrival]:
        news = [await self._news.get()]
        while not self._news.empty():
            news.append(self._news.get_nowait())
        arrived: dict[str, Arrival] = {}
        for each in news:
            if isinstance(each, BaseException):
                raise each
            before = arrived.get(each.key)
            arrived[each.key] = each if before is None else before.followed_by(each)
            if each.spans is not None:
                self._tasks.pop(each.key, None)
        return list(arrived.values())

    def stop(self, keys: Sequence[str]) -> list[Arrival]:
        """See :class:`TokenEngine`."""
        return self._run(self._stop(list(keys)), "cutting", self._config.step_timeout_s)

    async def _stop(self, keys: list[str]) -> list[Arrival]:
        tasks = [self._tasks[key] for key in keys if key in self._tasks]  # others have ended, and wait to be read
        await self._llm.abort(keys)
        await asyncio.gather(*tasks)
        arrived = await self._read()
        for other in arrived:
            if other.key not in keys:
                self._news.put_nowait(other)
        return [arrival for arrival in arrived if arrival.key in keys]

    def serve(self, tensors: Mapping[str, Tensor], version: str, mode: InFlight) -> None:
        """See :class:`TokenEngine`."""
        parcel = self._parcel.write(self._layout.select(tensors))
        self._run(self._serve(parcel, version, mode), "taking weights", self._config.start_timeout_s)

    async def _serve(self, parcel: dict[str, Any], version: str, mode: InFlight) -> None:
        llm = self._llm
        await llm.pause_generation(mode="wait" if mode is InFlight.finish else "keep", clear_cache=False)
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info=parcel))
        await llm.finish_weight_update(weight_version=version)
        if mode is not InFlight.keep_cache and not await llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("it did not drop the keys of earlier weights")  # they would pass for new ones
        await llm.resume_generation()

    def sleep(self) -> None:
        """Cache and weights are dropped; on a CPU, which vLLM cannot put to sleep, nothing is freed."""
        if self._sleeps:
            self._run(self._llm.sleep(level=2), "going to sleep", self._config.start_timeout_s)

    def wake(self) -> None:
        """The inverse of :meth:`sleep`."""
        if self._sleeps:
            self._run(self._llm.wake_up(), "waking up", self._config.start_timeout_s)

    def close(self) -> None:
        """End vLLM's processes; twice is harmless."""
        if self._loop.is_closed():
            return
        self._llm.shutdown(timeout=self._config.step_timeout_s)
        self._keeper.release()
        self._parcel.close()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()
        del self._llm  # its finaliser wants an interpreter that is not ending


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _open(options: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(options)


def _arrival(key: str, output: RequestOutput) -> Arrival:
    answer: CompletionOutput
    (answer,) = output.outputs
    if answer.finish_reason == "error":
        raise RuntimeError(f"request {key} ended with an error")
    tokens = list(answer.token_ids)
    said = answer.logprobs or []
    logprobs = [said[place][token].logprob for place, token in enumerate(tokens)]
    spans = None
    if output.finished:
        spans = tuple((span.version, span.end - span.start) for span in answer.weight_versions or ())
    return Arrival(key, tokens, logprobs, output.num_cached_tokens or 0, spans)


if __name__ == "__main__":
    if lacks := missing_call(globals()):
        sys.exit(lacks)
    print(json.dumps(missing_support(json.loads(sys.argv[1]))))
