"""What an engine serves, against its plans worked out by hand: where it differs from whole pages of the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.results import SizeSolution
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.solve.settings import Question
from kvtool.sizing.solve.solve import solve
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB

H100 = find_gpu("h100")
QUESTION = Question(users=None, context=32768, open_gpus=False, open_pp=False, open_dtype=False, loads="org/model")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {model.id.rsplit("/")[-1].lower(): model for model in load_catalogue()}


def best(
    model: Model, engine: str, question: Question = QUESTION, *, pool_bytes: int = 20 * GIB, **options: object
) -> SizeSolution:
    start = EngineOptions(name=engine, gpu=H100, kv_cache_memory_bytes=pool_bytes)
    given = {"gpu": H100, "engine": start, **options}
    (found,) = solve(model, SizeOptions(**given), question)[0].solutions or ()  # type: ignore[arg-type]
    return found


def test_gpt_oss_120b(models: dict[str, Model]) -> None:
    """18 full layers and 18 of 128 tokens, each 16 x 8 x (64 + 64) x 2 B = 32 KiB a page of 16; 20 GiB.

    vLLM: two groups, blocks of 18 x 32 KiB = 589,824 B: 36,408 of them less the null block. A request takes 32768/16 =
    2,048 of the full group and, with 2 x 8,192 tokens in flight, ceil((127 + 16,384) / 16) + 1 = 1,033 of the other.
    SGLang: 36,864 B a token of each pool, 0.8 tokens of windows to one of the full: 20 GiB / 66,355.2 B = 323,634.
    The formula: 2,048 pages and 9 of the window: 20 GiB / (2,057 x 589,824 B) = 17.7.
    """
    vllm, sglang = best(models["gpt-oss-120b"], "vllm"), best(models["gpt-oss-120b"], "sglang")
    assert vllm.vllm_users == 36_407 / 3_081
    assert (vllm.users, vllm.page_users, vllm.sglang_users) == (11, 17, None)
    assert sglang.sglang_users == 323_634 / 32_768
    assert (sglang.users, sglang.page_users, sglang.vllm_users) == (9, 17, None)
    assert "--max-num-seqs 11 " in (vllm.vllm or "")
    assert "--max-running-requests 9 " in (sglang.sglang or "")


def test_gemma_3_27b(models: dict[str, Model]) -> None:
    """10 full layers and 52 of 1,024 tokens, each 16 x 16 x (128 + 128) x 2 B = 128 KiB a page of 16.

    vLLM: groups of 10, and of 9, 9, 9, 9, 8 and 8, in blocks of 10 x 128 KiB: 16,384 in 20 GiB. A request takes 2,048
    and six times ceil((1,023 + 16,384) / 16) + 1 = 1,089. SGLang keeps all 62 layers whole: 507,904 B a token, 42,281.
    """
    vllm, sglang = best(models["gemma-3-27b-it"], "vllm"), best(models["gemma-3-27b-it"], "sglang")
    assert vllm.vllm_users == 16_383 / (2_048 + 6 * 1_089)
    assert (vllm.users, vllm.page_users) == (1, 6)
    assert sglang.sglang_users == 42_281 / 32_768


def test_qwen3_next(models: dict[str, Model]) -> None:
    """12 full layers of 2,048 B a token and 36 of state, 2,146,304 B each.

    vLLM: blocks of 576 tokens, that a state fits: 12 x 1,179,648 B, 1,517 in 20 GiB; 57 for 32,768 tokens and 3 for
    each of three groups of states. SGLang: 5 slots a request of 130, and 461,949 tokens of the rest.
    """
    name = "qwen3-next-80b-a3b-instruct"
    vllm, sglang = best(models[name], "vllm"), best(models[name], "sglang")
    assert vllm.vllm_users == 1_516 / (57 + 3 * 3)
    assert (vllm.users, vllm.page_users) == (22, 25)
    assert sglang.sglang_users == 461_949 / 32_768


def test_deepseek_v3_repeats_the_latent_unless_it_is_shared_out(models: dict[str, Model]) -> None:
    """61 layers x 576 x 2 B = 70,272 B a token on every one of 8 ranks; with dcp 8 each holds an eighth of the tokens.

    20 GiB hold 19,099 blocks of 16 tokens, one of them null, and a request takes 2,048; or 256 of 8 x 16 tokens.
    """
    model = models["deepseek-v3"]
    tp, dcp = Parallel(tp=8), Parallel(tp=8, dcp=8)
    assert best(model, "vllm", parallel=tp).vllm_users == 19_098 / 2_048
    assert best(model, "vllm", parallel=dcp).vllm_users == 19_098 / 256
    attention = Parallel(tp=8, dp=8, dp_attention=True)
    found = best(model, "sglang", parallel=attention)
    assert found.sglang_users == 8 * 305_595 / 32_768
    assert (found.users, found.enable_dp_attention) == (8 * 9, True)
    assert "--max-running-requests 72 " in (found.sglang or "")
    with pytest.raises(KvtoolError, match="--enable-dp-attention is SGLang's"):
        best(model, "vllm", parallel=attention)


def test_latent_layouts_without_copies_are_tried(models: dict[str, Model]) -> None:
    asked = replace(QUESTION, users=64, open_gpus=True, open_pp=True)
    document, _ = solve(models["deepseek-v3"], SizeOptions(gpu=find_gpu("h200"), weight_dtype="fp8"), asked)
    shared = {(one.dcp, one.dp, one.enable_dp_attention) for one in document.solutions or ()}
    assert {(8, 1, False), (1, 8, True)} <= shared


def test_layouts_of_as_many_gpus_that_serve_more_come_first(models: dict[str, Model]) -> None:
    asked = replace(QUESTION, open_gpus=True, open_pp=True)
    document, _ = solve(models["deepseek-v3"], SizeOptions(gpu=find_gpu("h200")), asked)
    on_eight = [one.users for one in document.solutions or () if one.num_gpus == 8]
    assert on_eight == sorted(on_eight, reverse=True)
    assert len(on_eight) == 3


def test_what_the_plans_of_the_best_take_for_given_is_said(models: dict[str, Model]) -> None:
    document, _ = solve(
        models["qwen3-next-80b-a3b-instruct"], SizeOptions(gpu=find_gpu("b200"), parallel=Parallel(tp=2)), QUESTION
    )
    said = "\n".join(document.assumptions)
    assert "the vLLM plan is approximate: B200-SXM-180GB: which kernels vLLM picks on Blackwell" in said
    assert "SGLang: recurrent state in fp32" in said
    assert len(set(document.assumptions)) == len(document.assumptions)


def test_what_is_not_planned_is_not_said_to_be_refused(models: dict[str, Model]) -> None:
    document, _ = solve(models["deepseek-v4-flash"], SizeOptions(gpu=find_gpu("h200")), replace(QUESTION, users=64))
    (one,) = document.rejected or ()
    assert "SGLang: SGLang's pools of compressed layers (DeepSeek-V4) are not planned" in one.reason


def test_a_shared_prefix_is_in_the_pool_once(models: dict[str, Model]) -> None:
    """20 GiB of Llama-3.1-8B: 10,240 blocks of 2 MiB. 8,192 tokens take 512 of them, of which 4,096 share 256."""
    model = models["llama-3.1-8b"]
    asked = replace(QUESTION, context=8192)
    assert best(model, "vllm", asked).vllm_users == 10_239 / 512
    assert best(model, "vllm", asked, shared_prefix=4096).vllm_users == (10_239 - 256) / 256
    assert best(model, "sglang", asked, shared_prefix=4096).sglang_users == (163_840 - 4_096) / 4_096


def test_what_vllm_refuses_is_no_solution_and_says_so(models: dict[str, Model]) -> None:
    """2 GiB are 1,024 blocks of 16 tokens, and 32,768 tokens take 2,048."""
    start = EngineOptions(name="vllm", gpu=H100, kv_cache_memory_bytes=2 * GIB)
    document, _ = solve(models["llama-3.1-8b"], SizeOptions(gpu=H100, engine=start), replace(QUESTION, users=1))
    assert document.solutions == []
    (refused,) = document.rejected or ()
    assert "the estimated maximum model length is 16368" in refused.reason  # 1,023 blocks of 16
    assert document.rows[0].engine.refusal is not None
