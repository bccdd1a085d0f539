"""The causal language model that is optimised: loading, forward over packed rows, saving."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config.model import AdapterConfig, ModelConfig, ModelSource, ScratchConfig
from engine.config.rollout import Precision
from engine.errors import ModelError
from engine.models.packaged_model import packaged_model_folder
from engine.models.packed import ATTENTION_NAME, Block, register_packed_attention, row_spans
from engine.models.tokenizer import PolicyTokenizer, character_tokenizer
from engine.ops.spans import RowSpans

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
DTYPES = {Precision.float32: torch.float32, Precision.bfloat16: torch.bfloat16}


def model_folder(config: ModelConfig) -> Path:
    """The Hugging Face folder that the first weights come from.

    Raises:
        ModelError: it is missing, incomplete, or of a family that the sampler does not know.
    """
    if config.source is ModelSource.packaged:
        return packaged_model_folder(config.packaged)
    folder = Path(config.path)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path={config.path!r} holds no config.json: give the folder of a Hugging Face model"
        )
    try:
        family = json.loads((folder / "config.json").read_text()).get("model_type")
    except ValueError as error:
        raise ModelError(f"model.path={config.path!r} holds a broken config.json: {error}") from None
    if family not in FAMILIES:
        raise ModelError(
            f"model.path={config.path!r} is of family {family!r}: known: {', '.join(FAMILIES)}"
        )
    return folder


def load_network(folder: str | Path, precision: Precision) -> Any:
    """A transformers network with packed attention, in evaluation mode (no dropout).

    Raises:
        ModelError: the folder does not hold a whole model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    register_packed_attention()
    loader: Any = AutoModelForCausalLM
    try:
        network, report = loader.from_pretrained(
            folder, dtype=DTYPES[precision], attn_implementation=ATTENTION_NAME, local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"no model could be loaded from {folder}: {error}") from None
    # Transformers fills gaps with random weights and a warning.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"the weights in {folder} lack {', '.join(missing[:3])}: copy the folder again")
    return network.eval()


def scratch_network(config: ScratchConfig, seed: int) -> tuple[Any, PolicyTokenizer]:
    """A small Llama with fresh weights drawn from ``seed``, and its character tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    register_packed_attention()
    tokenizer = character_tokenizer(config.alphabet)
    architecture = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=len(tokenizer.backend),
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context_tokens,
        initializer_range=config.initial_deviation,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.end_id,
        bos_token_id=None,
        pad_token_id=0,
        attn_implementation=ATTENTION_NAME,
    )
    # A generator of our own would not reach transformers' initialisers, hence the fork.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(architecture)
    return network.eval(), tokenizer


def with_adapter(network: Any, config: AdapterConfig) -> Any:
    """The network with LoRA adapters as its only trained weights, through peft.

    Raises:
        ModelError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError("model.adapter.rank > 0 needs peft: pip install 'perilune[lora]'") from None
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=list(config.targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(network, lora)


def _base(network: Any) -> Any:
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def hidden_states(network: Any, tokens: Tensor, positions: Tensor, blocks: Sequence[Block]) -> Tensor:
    """[T, D] last hidden states of one packed row, after the final norm.

    Args:
        network: from :func:`load_network`.
        tokens: [T] int64 ids.
        positions: [T] int64, restarting with every sequence.
        blocks: spans that look only at each other, one after the other, covering the row.
    """
    # One record for all layers: made in each of them, it would be checked and copied to the GPU as often.
    spans = RowSpans(row_spans(blocks), len(tokens), tokens.device)
    output = _base(network).model(
        input_ids=tokens[None], position_ids=positions[None], attention_mask=None, use_cache=False, row_spans=spans,
    )
    return output.last_hidden_state[0]


def head_weight(network: Any) -> Tensor:
    """[V, D] weight of the language-model head."""
    return _base(network).get_output_embeddings().weight


@torch.no_grad()
def published_tensors(network: Any) -> dict[str, Tensor]:
    """Name -> tensor of the plain model, adapters folded in, as generators receive it."""
    if not hasattr(network, "get_base_model"):
        return dict(network.state_dict())
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.get_base_model().state_dict().items():
        if ".lora_" not in name:
            tensors[name.replace(".base_layer.", ".")] = tensor
    for name, module in network.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.base_layer.weight
            tensors[f"{name}.weight"] = weight + module.get_delta_weight("default").to(weight.dtype)
    return tensors


def save_policy(
    network: Any, tensors: Mapping[str, Tensor], tokenizer: PolicyTokenizer, folder: str | Path
) -> None:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` loads, adapters folded in.

    Args:
        network: whose architecture it is.
        tensors: name -> weight; their type is the folder's, whatever the network itself is held in.
        tokenizer: written beside them.
        folder: made where it is missing.
    """
    base = _base(network)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tied = set(getattr(base, "all_tied_weights_keys", None) or {})
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items() if name not in tied}
    dtype = next(str(tensor.dtype) for tensor in kept.values() if tensor.is_floating_point())
    base.save_pretrained(folder, state_dict=kept)  # which empties the dictionary
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype.removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(folder)
