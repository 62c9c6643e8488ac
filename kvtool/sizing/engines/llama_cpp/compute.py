"""What llama.cpp reserves to compute in, beside weights and caches: an estimate of its graph of one --ubatch-size.

Worked out from the tensors that src/llama-graph.cpp makes in fp32, of which ggml's allocator keeps those alive at once;
the logs that it was held against are in the tests. Experts, recurrent layers and several GPUs in a pipeline add to it.
"""

from __future__ import annotations

from kvtool.catalog.model import Model
from kvtool.sizing.engines.llama_cpp.plan import STATES, LlamaCppPlan

FP32_BYTES, FP16_BYTES = 4, 2
FLASH_ROWS, SCORED_ROWS = 5, 4  # hidden states alive in attention, with flash attention and without


def compute_bytes(plan: LlamaCppPlan) -> int:
    """On the GPU that has the output: the largest of its logits, an attention over the whole cache, and an MLP."""
    return max(_logits_bytes(plan), _attention_bytes(plan), _mlp_bytes(plan))


def _row_bytes(plan: LlamaCppPlan) -> int:
    """A hidden state of every token of a batch."""
    return plan.start.ubatch * plan.model.hidden_size * FP32_BYTES


def _logits_bytes(plan: LlamaCppPlan) -> int:
    return plan.start.ubatch * (plan.model.vocab_size or 0) * FP32_BYTES + _row_bytes(plan)


def _attention_bytes(plan: LlamaCppPlan) -> int:
    """The mask, which flash attention wants in fp16 too; else the scores of all heads."""
    cells = [cache.rows // plan.start.streams for cache in plan.caches if cache.name != STATES]
    if not cells:
        return 0
    mask = plan.start.ubatch * sum(cells)
    if plan.flags.flash_attn != "off":
        return mask * (FP32_BYTES + FP16_BYTES) + FLASH_ROWS * _row_bytes(plan)
    scores = plan.model.num_heads * plan.start.ubatch * max(cells)
    return (scores + mask) * FP32_BYTES + SCORED_ROWS * _row_bytes(plan)


def _mlp_bytes(plan: LlamaCppPlan) -> int:
    """Gate and up, beside the residual and what came before it."""
    return 2 * plan.start.ubatch * _mlp_width(plan.model) * FP32_BYTES + 2 * _row_bytes(plan)


def _mlp_width(model: Model) -> int:
    if model.moe is None:
        return model.intermediate_size or 0
    return model.moe.experts_per_token * model.moe.intermediate_size + model.moe.shared_intermediate_size
