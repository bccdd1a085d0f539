"""What is called of vLLM, and whether a version of it takes these calls: names alone say too little.

Nothing of vLLM is imported here; its classes and functions come in by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "AsyncEngineArgs": (0, (
        "model", "dtype", "load_format", "skip_tokenizer_init", "generation_config", "logprobs_mode", "seed",
        "max_model_len", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_prefix_caching",
        "gpu_memory_utilization", "enable_sleep_mode", "kv_cache_memory_bytes", "disable_log_stats",
        "weight_transfer_config", "worker_extension_cls",
    )),
    "SamplingParams": (0, (
        "temperature", "max_tokens", "seed", "logprobs", "ignore_eos", "stop_token_ids", "detokenize", "output_kind",
    )),
    "WeightTransferConfig": (0, ("backend",)),
    "WeightTransferUpdateRequest": (0, ("update_info",)),
    "tokens_input": (1, ("cache_salt",)),
    "initialize_layerwise_reload": (1, ()),
    "finalize_layerwise_reload": (2, ()),
    "AsyncLLM.from_engine_args": (1, ()),
    "AsyncLLM.add_request": (4, ()),
    "AsyncLLM.abort": (2, ()),
    "AsyncLLM.pause_generation": (1, ("mode", "clear_cache")),
    "AsyncLLM.start_weight_update": (1, ()),
    "AsyncLLM.update_weights": (2, ()),
    "AsyncLLM.finish_weight_update": (1, ("weight_version",)),
    "AsyncLLM.reset_prefix_cache": (1, ("reset_running_requests",)),
    "AsyncLLM.resume_generation": (1, ()),
    "AsyncLLM.sleep": (1, ("level",)),
    "AsyncLLM.wake_up": (1, ()),
    "AsyncLLM.shutdown": (1, ("timeout",)),
    "RequestOutputCollector.get": (1, ()),
    "StagedTransfer.parse_update_info": (2, ()),
}
"""Name -> arguments given by their place, the object itself included, and those given by name."""
FIELDS: dict[str, tuple[str, ...]] = {
    "RequestOutput": ("outputs", "finished", "num_cached_tokens"),
    "CompletionOutput": ("token_ids", "logprobs", "finish_reason", "weight_versions"),
}
"""Name of what vLLM answers with -> what is read of it."""


def missing_call(names: Mapping[str, Any]) -> str:
    """The first call that a version of vLLM does not take, as a sentence; empty when it takes all.

    Args:
        names: where the imported classes and functions are found.
    """
    for dotted, (places, given) in CALLS.items():
        first, _, method = dotted.partition(".")
        function = getattr(names[first], method, None) if method else names[first]
        if function is None:
            return f"{first} has no {method}"
        try:
            inspect.signature(function).bind(*range(places), **dict.fromkeys(given))
        except TypeError as error:
            return f"{dotted}: {error}"
    for name, read in FIELDS.items():
        known = inspect.signature(names[name]).parameters
        for field in read:
            if field not in known:
                return f"{name} has no {field}"
    unwritten = sorted(getattr(names["StagedTransfer"], "__abstractmethods__", ()))
    return f"a transfer of weights needs {', '.join(unwritten)}" if unwritten else ""
