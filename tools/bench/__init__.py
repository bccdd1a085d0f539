"""What ``tools.bench_loop`` and ``tools.bench_ops`` measure, one subject a file.

- ``update``: sample, learn, swap, beside TRL (``trl_child``)
- ``generate``: whole sequences, beside transformers and vLLM (``vllm_child``)
- ``decode_bound``: one decoding step, beside its own matrix products
- ``sampler``, ``learner``: one step of each, beside transformers and the references (``reference_child``)
- ``controller``: its step function alone; ``publish``: from new weights to the first token under them
- ``subject``: the model and prompts that all sides share; ``timing``: interleaved repeats
- ``child``: a side in a process of its own
- ``token_logprob``, ``logits_logprob``, ``sample``: the ops beside torch (``head_sides``), the processor's
  ``ceiling`` and their ``extra_memory``

And what ``tools.check_gpu`` measures: ``gpu_head`` beside ``gpu_peers``, ``gpu_rows``, ``gpu_nccl``, ``gpu_loop``;
``gpu`` has the events, the memory and the ceilings of the card.
"""
