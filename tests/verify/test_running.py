"""A running server's own pages beside the plan, as `verify` holds a log."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kvtool.engine.endpoint.address import parse_address
from kvtool.engine.endpoint.client import Client
from kvtool.system.errors import KvtoolError
from kvtool.verify.running import running_facts
from kvtool.verify.verify import Asked, verify
from tests.cli.in_process import run
from tests.engine.endpoint.fake import Fake, serving

# As vLLM 0.32.0 shows it on a CPU with VLLM_CPU_KVCACHE_SPACE=2 and --max-model-len 4096, SmolLM2-135M in bf16.
VLLM_PAGE = (
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",effective_attention_block_size="128",'
    'enable_prefix_caching="True",gpu_memory_utilization="0.92",kv_cache_max_concurrency="22.75",'
    'kv_cache_memory_bytes="2147483648",kv_cache_size_tokens="93184",num_gpu_blocks="728",'
    'num_gpu_blocks_override="None"} 1.0\nvllm:prompt_tokens_total{model_name="smollm2-135m"} 0.0\n'
)


class Pages(Fake):
    """A server with these pages."""

    def __init__(self, **pages: object) -> None:
        super().__init__()
        self.told = {f"/{name}": page for name, page in pages.items()}

    def pages(self) -> dict[str, tuple[str, str]]:
        return {path: ("", page if isinstance(page, str) else json.dumps(page)) for path, page in self.told.items()}


def models(owner: str, **more: object) -> dict[str, object]:
    return {"data": [{"id": "smollm2-135m", "owned_by": owner, **more}]}


def serving_pages(**pages: object) -> Pages:
    fake = Pages(**pages)
    fake.told = {path.replace("_v1_models", "v1/models"): page for path, page in fake.told.items()}
    return fake


@pytest.fixture
def vllm() -> Iterator[Fake]:
    pages = serving_pages(
        _v1_models=models("vllm", max_model_len=4096), version={"version": "0.32.0"}, metrics=VLLM_PAGE
    )
    with serving(pages) as fake:
        yield fake


def test_vllm_to_the_block(vllm: Fake) -> None:
    """2 GiB of blocks of 128 tokens and 360 KiB a layer group: 728, which hold 93,184 tokens."""
    client = Client(parse_address(vllm.url))
    document = verify(running_facts(client), Asked(model="smollm2-135m"), log=vllm.url)
    client.close()
    rows = {row.term: row for row in document.rows}
    assert document.verdict == "agrees"
    assert (document.engine.version, document.inputs["max_model_len"]) == ("0.32.0", 4096)
    assert {term: (rows[term].logged, rows[term].verdict) for term in ("blocks", "tokens", "max concurrency")} == {
        "blocks": (728, "equal"),
        "tokens": (93184, "equal"),
        "max concurrency": (22.75, "equal"),
    }


def test_the_command_names_the_model_itself(
    vllm: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(capsys, monkeypatch, "verify", "--url", vllm.url)
    assert (done.code, done.err) == (0, "")
    assert "93,184" in done.out
    off = run(capsys, monkeypatch, "verify", "--url", vllm.url, "--kv-cache-dtype", "fp8")
    assert off.code == 1
    both = run(capsys, monkeypatch, "verify", "a.log", "smollm2-135m", "--url", vllm.url)
    assert (both.code, "are two starts" in both.err) == (2, True)
    none = run(capsys, monkeypatch, "verify")
    assert (none.code, "or the --url of a server" in none.err) == (2, True)


def test_llama_cpp_by_its_slots() -> None:
    props = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 2, "build_info": "b9999"}
    with serving(serving_pages(_v1_models=models("llamacpp", meta={"n_vocab": 49152}), props=props)) as fake:
        client = Client(parse_address(fake.url))
        document = verify(running_facts(client), Asked(model="smollm2-135m"), log=fake.url)
        client.close()
    rows = {row.term: row for row in document.rows}
    assert document.verdict == "agrees"
    assert (rows["tokens of a slot"].logged, rows["tokens of a slot"].verdict) == (4096, "equal")
    # 30 layers x 2 x 4,096 cells x 3 KV heads x 64 x 2 bytes, K and V
    assert rows["KV cache"].predicted == 30 * 8192 * 3 * 64 * 2 * 2


def test_sglang_by_its_arguments() -> None:
    page = 'sglang:max_total_num_tokens{model_name="smollm2-135m"} 20480.0\nsglang:prompt_tokens_total 1\n'
    info = {"version": "0.5.20", "tp_size": 1, "page_size": 16, "kv_cache_dtype": "auto", "mem_fraction_static": 0.8}
    with serving(serving_pages(_v1_models=models("sglang"), metrics=page, server_info=info)) as fake:
        client = Client(parse_address(fake.url))
        facts = running_facts(client)
        client.close()
    assert (facts.engine, facts.version, facts.flags["page_size"]) == ("sglang", "0.5.20", "16")
    assert facts.first("tokens") is not None


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({"_v1_models": models("somebody")}, "says not of which engine it is"),
        ({"_v1_models": models("sglang")}, "has no /metrics (SGLang: --enable-metrics)"),
        ({"_v1_models": models("llamacpp")}, "shows no /props"),
    ],
)
def test_a_server_that_says_nothing_of_its_cache(pages: dict[str, object], words: str) -> None:
    with serving(serving_pages(**pages)) as fake:
        client = Client(parse_address(fake.url))
        with pytest.raises(KvtoolError) as told:
            running_facts(client)
        client.close()
    assert words in str(told.value)
