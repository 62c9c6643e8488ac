from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.model import Model
from kvtool.results import Calibration, SizeDocument, SizeSolution, encode
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.solve.settings import Question
from kvtool.sizing.solve.solve import solve
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError
from tests.sizing.example import (
    ALL_KINDS,
    CARD,
    DEEPSEEK_V3,
    LLAMA_8B,
    LLAMA_8B_TABLE_BYTES,
    SHARING,
    graphs_by_hand,
    llama_8b_pool_bytes,
)

WEIGHED = [model for model in ALL_KINDS if weigh(model).stored_bytes is not None]
FIXED = {"open_gpus": False, "open_pp": False, "open_dtype": False}


def ask(
    model: Model = LLAMA_8B,
    *,
    users: int | None = None,
    context: int | None = None,
    open_gpus: bool = True,
    open_pp: bool = True,
    open_dtype: bool = True,
    open_start: bool = False,
    open_weights: bool = False,
    **options: object,
) -> SizeDocument:
    question = Question(
        users=users,
        context=context,
        open_gpus=open_gpus,
        open_pp=open_pp,
        open_dtype=open_dtype,
        open_start=open_start,
        open_weights=open_weights,
        loads="meta-llama/Llama-3.1-8B",
    )
    return solve(model, SizeOptions(**{"gpu": CARD, **options}), question)[0]  # type: ignore[arg-type]


def found(*args: object, **kwargs: object) -> list[SizeSolution]:
    solutions = ask(*args, **kwargs).solutions  # type: ignore[arg-type]
    assert solutions is not None
    return solutions


def test_sixty_four_users_of_32k_by_hand() -> None:
    """In bf16 they take 256 GiB: 64 GiB on each of 4 GPUs, which have 73.6 GB less 4.0 GB of weights, tables of
    positions, a forward pass with a quarter of attention and MLP, 0.37 GiB of runtime and buffers, and graphs of the
    11 sizes up to 64; so 4 GPUs need fp8, and 2 GPUs would need as much in fp8 as those in bf16.
    """
    forward = 8192 * (3 * 4096 + 1024 + 3 * 3584) * 2 + 8 * 1024**2 + 128 * 1024
    reserve = round(0.37 * 2**30) + graphs_by_hand(11, tp=4)
    solutions = found(users=64, context=32768)
    assert [(s.num_gpus, s.tp, s.pp, s.kv_cache_dtype) for s in solutions] == [
        (4, 4, 1, "fp8"),
        (8, 8, 1, "bf16"),
        (8, 8, 1, "fp8"),
        (16, 8, 2, "bf16"),
        (16, 8, 2, "fp8"),
    ]
    best = solutions[0]
    pool = 73_600_000_000 - 4_015_130_624 - LLAMA_8B_TABLE_BYTES - forward - reserve
    assert (best.kv_bytes_per_gpu, best.kv_pool_bytes) == (1 << 35, pool)
    assert (best.nodes, solutions[-1].nodes) == (1, 2)


def test_the_most_users_by_hand() -> None:
    """8,192 tokens take 1 GiB; the logits of few sequences are less than the forward pass, which decides. 9 sizes are
    up to 52: 1, 2, 4, 8 .. 48.
    """
    (best,) = found(users=None, context=8192, **FIXED)
    assert (best.users, best.kv_pool_bytes) == (52, llama_8b_pool_bytes(9))


def test_the_longest_context_by_hand() -> None:
    """The pool beside graphs of 11 sizes holds 64 x 417 pages of 2 MiB, but not 64 x 418."""
    assert llama_8b_pool_bytes(11) // (2 << 20) // 64 == 417
    (best,) = found(users=64, context=None, **FIXED)
    assert best.context == 417 * 16
    assert found(users=1, context=None, **FIXED)[0].context == 131_072  # the model's own limit
    assert found(users=1, context=None, max_model_len=4096, **FIXED)[0].context == 4096


def test_rows_are_those_of_the_best() -> None:
    document = ask(users=64, context=32768)
    (row,) = document.rows
    assert (row.inputs.tp, row.inputs.kv_cache_dtype, row.inputs.batch_size) == (4, "fp8", 64)
    assert row.fit.fits
    assert "solutions: fewest GPUs first" in "\n".join(document.assumptions)
    encode(document)


def test_nothing_fits_and_the_last_try_is_shown() -> None:
    document = ask(users=1000, context=131_072)
    assert document.solutions == []
    (row,) = document.rows
    assert (row.inputs.num_gpus, row.inputs.batch_size, row.fit.fits) == (16, 1000, False)


def test_no_room_for_even_one() -> None:
    document = ask(DEEPSEEK_V3, users=None, context=4096, **FIXED)
    assert document.solutions == []
    assert document.rows[0].fit.limited_by == "weights"


def test_heads_that_do_not_divide_become_stages() -> None:
    fourteen = replace(LLAMA_8B, num_heads=14, layers=LLAMA_8B.layers[:28])
    layouts = dict.fromkeys((s.tp, s.pp) for s in found(replace(fourteen, hidden_size=1792), users=1, context=4096))
    assert list(layouts) == [(1, 1), (2, 1), (2, 2), (2, 4), (2, 8)]


def test_layers_that_share_a_cache_are_not_cut_into_stages() -> None:
    assert {s.pp for s in found(SHARING, users=1, context=4096)} == {1}


def test_what_is_given_is_kept() -> None:
    assert {(s.tp, s.pp) for s in found(users=4, context=4096, parallel=Parallel(pp=2), open_pp=False)} == {
        (1, 2), (2, 2), (4, 2), (8, 2)
    }  # fmt: skip
    layouts = {(s.tp, s.pp) for s in found(users=4, context=4096, parallel=Parallel(tp=2), open_gpus=False)}
    assert layouts == {(2, 1)}
    given = {"users": 4, "context": 4096, "open_dtype": False}
    assert {s.kv_cache_dtype for s in found(**given, kv_cache_dtypes=("fp8_e5m2",))} == {"fp8_e5m2"}


def test_a_cache_that_no_engine_has_is_no_solution() -> None:
    document = ask(users=4, context=4096, kv_cache_dtypes=("int8",), **{**FIXED, "open_gpus": True})
    assert document.solutions == []
    assert document.rejected is not None
    assert all("vLLM: --kv-cache-dtype int8: vLLM has none such" in one.reason for one in document.rejected)


def test_an_fp32_checkpoint_is_served_in_16_bits() -> None:
    assert found(replace(LLAMA_8B, dtype="float32"), users=1, context=4096)[0].kv_cache_dtype == "bf16"


def test_replicas_share_the_users() -> None:
    (best,) = found(users=None, context=8192, **{**FIXED, "parallel": Parallel(dp=2)})
    assert (best.users, best.num_gpus) == (104, 2)
    assert best.vllm is not None
    assert "--max-num-seqs 52 " in best.vllm


def test_a_shared_prefix_makes_room() -> None:
    """512 MiB once, then 512 MiB for each: 103 x 2^29 + 2^29 of the pool beside graphs of 15 sizes, and not 104."""
    assert 104 * 2**29 <= llama_8b_pool_bytes(15) < 105 * 2**29
    (best,) = found(users=None, context=8192, shared_prefix=4096, **FIXED)
    assert best.users == 103


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"users": None, "context": None}, "leave too much open"),
        ({"users": 0, "context": 1}, "users 0 must be from 1"),
        ({"users": 1, "context": 1 << 18}, "context 262144 is longer than the 131072 tokens of llama-8b"),
        ({"users": 1, "context": 64, "shared_prefix": 65}, "shared prefix 65 is longer than the context 64"),
        ({"users": 1, "context": 64, "gpu": None}, "name it with --gpu"),
        ({"users": 9, "context": 64, "max_num_seqs": 8}, "--max-num-seqs 8 is less than the 9 users"),
        ({"users": 9, "context": 64, "max_num_batched_tokens": 8}, "--max-num-batched-tokens 8 is less than the 9"),
        (
            {"users": 1, "context": 64, "calibration": Calibration(source="", kv_pool_bytes=1)},
            "--calibration was measured on one layout: say which with --tp",
        ),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        ask(**asked)  # type: ignore[arg-type]


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(KvtoolError, match=r"weights unknown: .*--calibration can give them"):
        ask(replace(LLAMA_8B, architecture=None), users=1, context=64)


def test_the_most_users_keep_to_max_num_seqs() -> None:
    assert found(users=None, context=64, max_num_seqs=8, **FIXED)[0].users == 8
    assert found(users=None, context=64, max_num_batched_tokens=8, **FIXED)[0].users == 8


@given(model=st.sampled_from(WEIGHED), context=st.integers(1, 100_000), tp=st.sampled_from([1, 2, 8]))
def test_the_most_users_fit_and_one_more_does_not(model: Model, context: int, tp: int) -> None:
    asked = {**FIXED, "context": context, "parallel": Parallel(tp=tp)}
    solutions = found(model, users=None, **asked)
    users = solutions[0].users if solutions else 0
    assert not found(model, users=users + 1, **asked)
    if users:
        (best,) = found(model, users=users, **asked)
        assert best.kv_bytes_per_gpu <= best.kv_pool_bytes + best.margin_bytes
        same = SizeOptions(
            gpu=CARD, contexts=(context,), batch_sizes=(users,), parallel=Parallel(tp=tp), max_num_seqs=users,
            max_model_len=context,
        )  # fmt: skip
        assert size(model, options=same).rows[0].fit.kv_pool_bytes == best.kv_pool_bytes


def test_another_start_saves_gpus() -> None:
    """53 x 8k in bf16 take 53 GiB: 0.92 of 80 GB leaves less, 0.95 and a step of 2,048 tokens leave 2.2 GiB more and
    the activations of 6,144 tokens.
    """
    assert found(users=54, context=8192, **FIXED) == []
    (other,) = found(users=54, context=8192, open_start=True, **FIXED)
    assert (other.gpu_memory_utilization, other.max_num_batched_tokens) == (0.95, 2048)
    assert other.vllm is None or "--gpu-memory-utilization 0.95" in other.vllm
    assert found(users=54, context=8192, open_start=True, gpu_memory_utilization=0.92, **FIXED) == []


def test_lighter_weights_come_last_and_only_where_they_save_gpus() -> None:
    """56 x 8k in bf16 take 56 GiB; one GPU has 51.6 GiB beside 15 GiB of weights, and 6.5 GiB more beside fp8."""
    solutions = found(users=56, context=8192, open_dtype=False, open_weights=True)
    assert [(one.num_gpus, one.weight_dtype) for one in solutions if one.num_gpus < 4] == [
        (2, "bf16"),
        (1, "fp8"),
        (1, "int4"),
    ]
    assert [one.weight_dtype for one in solutions][-2:] == ["fp8", "int4"]
    assert "--quantization fp8" in str(solutions[-2].vllm)
    assert "need a checkpoint that is stored so" in str(solutions[-1].reason)
