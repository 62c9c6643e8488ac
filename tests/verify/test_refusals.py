"""A refusal is explained in one sentence, with a flag that helps."""

from __future__ import annotations

import pytest

from tests.verify.helpers import from_text, held, quoted


def explanation(text_or_name: str, model: str = "llama-3.1-8b", gpu: str | None = None) -> str:
    facts = quoted(text_or_name) if text_or_name.endswith(".log") else from_text(text_or_name)
    document = held(facts, model, gpu)
    assert document.verdict == "refused"
    assert document.refusal is not None
    assert "\n" not in document.refusal.line
    return document.refusal.explanation


def test_what_is_missing_and_the_length_that_fits() -> None:
    text = explanation("vllm_0_15_qwen3_coder_30b_refused.log", "qwen/qwen3-30b-a3b")
    assert "20.82 GiB are missing" in text
    assert "--max-model-len 34736" in text


def test_memory_that_another_process_holds() -> None:
    text = explanation("vllm_0_9_free_memory.log")
    assert "15.94 GiB" in text
    assert "--gpu-memory-utilization 0.66" in text  # 31.44 of 47.38 GiB


def test_graphs_that_leave_nothing() -> None:
    assert "118.65 GiB" in explanation("vllm_no_memory_graphs.log")


def test_weights_that_leave_nothing() -> None:
    text = explanation("No available memory for the cache blocks.", "llama-3.1-70b", "h100")
    assert "weights take 131.45 GiB" in text
    assert "tensor parallel" in text


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("Failed to load model - not enough GPU memory. Try lowering it", "14.99 GiB on each GPU"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB", "did not fit"),
        (
            "Model loading took 15.0 GiB memory\nAvailable KV cache memory: 50.00 GiB\n"
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "beside the cache",
        ),
        (
            "ValueError: max_num_seqs (256) exceeds available Mamba cache blocks (95). Each decode sequence needs one",
            "--max-num-seqs 95",
        ),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "--mem-fraction-static"),
        (
            "max_total_num_tokens=1000, context_len=10, \nCUDA out of memory. Tried to allocate 512.00 MiB.\n"
            "Load weight end. avail mem=1.00 GB, mem usage=15.00 GB",
            "--chunked-prefill-size",
        ),
        ("Not enough GPU memory for hybrid (mamba/linear-attention) state cache.", "--max-running-requests"),
        (
            "ValueError: Total number of attention heads (32) must be divisible by tensor parallel size (3).",
            "--tensor-parallel-size 2 or 4",
        ),
        (
            "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which 21.50 "
            "MiB is free. Process 3415 has 18.20 GiB memory in use. Including non-PyTorch memory, this process",
            "Other processes hold 18.20 GiB",
        ),
        ("AssertionError: Error in memory profiling. Initial free memory 20.1 GiB, current", "gave memory of this GPU"),
        (
            "World size (4) is larger than the number of available GPUs (2) in this node.",
            "4 ranks were asked for and 2",
        ),
        (
            "User-specified max_model_len (262144) is greater than the derived max_model_len (max_position_embeddings",
            "--max-model-len 131072 or less",
        ),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "says why"),
        (
            "ValueError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. "
            "pre_model_load_memory=9.1\nserver_args=ServerArgs(tp_size=2)",
            "lower --mem-fraction-static",
        ),
    ],
)
def test_every_kind_names_what_helps(log: str, words: str) -> None:
    assert words in explanation(log)


def test_the_log_s_own_words_are_kept_without_the_prefix() -> None:
    document = held(quoted("vllm_0_9_free_memory.log"), "llama-3.1-8b")
    assert document.refusal is not None
    assert document.refusal.line.startswith("Free memory on device (31.44/47.38 GiB)")
