"""What ``tools.bench_loop`` and ``tools.bench_ops`` measure, one subject a file.

- ``update``: sample, learn, swap, beside TRL (``trl_child``)
- ``generate``: whole sequences, beside transformers and vLLM (``vllm_child``)
- ``decode_bound``: one decoding step, beside its own matrix products
- ``sampler``, ``learner``: one step of each, beside transformers and the references (``reference_child``)
- ``controller``: its step function alone; ``publish``: from new weights to the first token under them
- ``subject``: the model and prompts that all sides share; ``timing``: interleaved repeats
- ``child``: a side in a process of its own
- ``token_logprob``, ``logits_logprob``, ``sample``: the ops beside torch (``head_sides``), the processor's
  ``ceiling``, their ``extra_memory`` and the ``error`` of gradients (``head_truth``); ``token_logprob_float32`` and
  ``linear_cross_entropy``: the forward in float32, and beside torch's own op
- ``packed_attention``, ``packed_rows``: the ops on packed rows; ``slot_attention``, ``rms_norm``, ``rotary``,
  ``gated_silu``: those of a decoding step (``decoder_op``)

And what ``tools.check_gpu`` measures: ``gpu_head`` beside ``gpu_peers``, ``gpu_rows``, ``gpu_packed``,
``gpu_channels``, ``gpu_loop``; ``gpu`` has the events, the memory and the ceilings of the card, ``deadline`` the end of
what is late.
"""
