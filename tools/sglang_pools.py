"""What SGLang's own configurators decide for real configs: makes tests/data/sglang_pools.csv.

    pip download sglang==0.5.23 --no-deps -d WHEEL_DIR && unzip WHEEL_DIR/sglang-0.5.23*.whl -d SGLANG
    python tools/sglang_pools.py SGLANG        (needs torch on the CPU, nothing else of SGLang's)

Its modules of pool sizes, shapes and states are loaded as they are; all else of the package, which needs GPUs, is
replaced by empty stand-ins, and the start's settings are handed in. Nothing of kvtool is used.
"""

from __future__ import annotations

import csv
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace as Space
from typing import ClassVar
from unittest.mock import MagicMock

DATA = Path(__file__).parents[1] / "tests" / "data"
REAL = ("model_executor.pool_configurator", "mem_cache.kv_cache_configurator", "configs.model_config")
REAL += ("configs.mamba_utils",)
GIB = 1 << 30
CONFIGS = (
    "meta-llama--Meta-Llama-3.1-8B", "meta-llama--Meta-Llama-3.1-70B", "Qwen--Qwen3-30B-A3B", "google--gemma-3-27b-it",
    "deepseek-ai--DeepSeek-V2-Lite", "deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-V3.2", "zai-org--GLM-5.2",
    "openai--gpt-oss-120b", "google--gemma-4-26B-A4B", "meta-llama--Llama-4-Scout-17B-16E-Instruct",
    "Qwen--Qwen3-Next-80B-A3B-Instruct", "nvidia--NVIDIA-Nemotron-Nano-9B-v2",
    "moonshotai--Kimi-Linear-48B-A3B-Instruct", "Qwen--Qwen3.5-27B", "google--gemma-4-E2B-it",
    "google--gemma-3n-E2B-it", "allenai--Olmo-3-1025-7B", "mistralai--Mistral-7B-v0.1",
)  # fmt: skip
COLUMNS = (
    "config", "pool_bytes", "tp", "pp", "dcp", "attention_dp", "page_size", "element_bytes", "dsa_backend", "context",
    "swa_ratio", "mamba_ratio", "max_mamba_cache_size", "max_running_requests", "max_total_tokens", "radix_cache",
    "max_total_num_tokens", "full_tokens", "swa_tokens", "state_slots", "requests", "refusal",
)  # fmt: skip


class Stand(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in ("sglang", "transformers"):
            return None
        if name.removeprefix("sglang.srt.") in REAL:
            return importlib.util.spec_from_file_location(name, self.root / f"{name.replace('.', '/')}.py")
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stand(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def space(value: object) -> object:
    """A config of HF's as attributes."""
    return Space(**{key: space(item) for key, item in value.items()}) if isinstance(value, dict) else value


class Sglang:
    """The loaded modules, and the settings of one start that they read."""

    def __init__(self, root: Path) -> None:
        sys.meta_path.insert(0, Finder(root))
        load = importlib.import_module
        self.pools, self.sizes, self.models, self.states = (load(f"sglang.srt.{name}") for name in REAL)
        import torch

        cp, qsa = load("sglang.srt.layers.cp.utils"), load("sglang.srt.layers.attention.qsa.config")
        cp.get_glm_dsa_layer_split_effective_num_layers = lambda _, layers: layers
        cp.get_glm_dsa_cp_layer_shard_info = lambda _: (0, 1)
        qsa.parse_qsa_profile = lambda _: None
        load("sglang.srt.configs.dots3").Dots3Config = type("Dots3Config", (), {})
        dsa = Space(
            quant_block_size=128, index_k_with_scale_buffer_dtype=torch.uint8, rope_storage_dtype=torch.bfloat16
        )
        for module in (self.pools, self.sizes):
            module.DSATokenToKVPool, module._is_hip, module._is_npu = dsa, False, False
        self.pools.compute_page_shard_scratch_bytes = lambda *_, **__: 0
        self.pools.is_float4_e2m1fn_x2 = lambda _: False
        self.pools.ceil_div = lambda a, b: -(-a // b)
        self.pools.ceil_align = lambda a, b: -(-a // b) * b
        self.pools.mambaish_config = lambda model: model.mamba
        self.pools.envs = self.sizes.envs = Space(
            SGLANG_NPU_ENABLE_SPARSE_KV_OFFLOAD=Space(get=lambda: False),
            SGLANG_SWA_EVICTION_INTERVAL=Space(get=lambda: 128),
            SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK=Space(get=lambda: False),
        )
        self.sizes.get_mamba_tracking_slots = lambda **flags: (2 if flags["overlap"] else 1) * flags["extra_buffer"]
        self.sizes.get_pp_indices = lambda layers, rank, size: stage(layers, rank, size)
        self.states.divide = lambda a, b: a // b
        self.states.envs = Space(
            SGLANG_MAMBA_CONV_DTYPE=Space(get=lambda: "bfloat16"), SGLANG_MAMBA_SSM_DTYPE=Space(get=lambda: None)
        )

    def settings(self, case: dict, model: object) -> object:
        """Puts the settings of `case` where SGLang's code reads them; the schedule, which it writes to."""
        schedule = Space(
            swa_full_tokens_ratio=case["swa_ratio"], mamba_full_memory_ratio=case["mamba_ratio"],
            max_running_requests=case["max_running_requests"], max_total_tokens=case["max_total_tokens"],
            max_mamba_cache_size=case["max_mamba_cache_size"], page_size=case["page_size"],
            chunked_prefill_size=8192, disable_overlap_schedule=not model.extra_buffer and model.mamba is not None,
        )  # fmt: skip
        parts = {
            "get_schedule": schedule,
            "get_parallel": Space(attn_tp_size=case["tp"], attn_dcp_size=case["dcp"], pp_size=1),
            "get_memory": Space(
                enable_unified_memory=False, enable_hisparse=False, enable_unified_cache_external_linker=False,
                disable_radix_cache=not case["radix_cache"],
            ),
            "get_exec": Space(
                kernel=Space(dsa_prefill_backend=case["dsa_backend"], dsa_decode_backend=case["dsa_backend"]),
                mamba=Space(
                    enable_mamba_extra_buffer=model.extra_buffer and case["radix_cache"],
                    enable_mamba_extra_buffer_lazy=False, enable_linear_replayssm_spec=False,
                ),
            ),
            "get_disagg": Space(disaggregation_mode="null"),
            "get_spec": Space(speculative_algorithm=None, speculative_num_draft_tokens=None),
            "get_context": Space(override=lambda _, **values: schedule.__dict__.update(values)),
        }  # fmt: skip
        for (name, value), module in itertools.product(parts.items(), (self.pools, self.sizes)):
            setattr(module, name, lambda value=value: value)
        return schedule

    def model(self, config: dict, tp: int, context: int) -> object:
        """SGLang's ModelConfig, as far as pools go: its own methods over the attributes of HF's config."""
        models, hf = self.models, space(config)
        text = getattr(hf, "text_config", hf)
        if config["model_type"].startswith(
            "gemma4"
        ):  # utils/hf_transformers/config.py: full attention is the base shape
            text.swa_head_dim = text.swa_v_head_dim = text.head_dim
            text.swa_num_key_value_heads = text.num_key_value_heads
            text.head_dim = text.v_head_dim = text.global_head_dim
            text.num_key_value_heads = getattr(text, "num_global_key_value_heads", 0) or text.num_key_value_heads

        class Model:
            hf_config, hf_text_config, is_draft_model, context_len = hf, text, False, context
            get_num_kv_heads = models.ModelConfig.get_num_kv_heads
            get_swa_num_kv_heads = models.ModelConfig.get_swa_num_kv_heads
            get_total_num_kv_heads = models.ModelConfig.get_total_num_kv_heads
            _derive_model_shapes = models.ModelConfig._derive_model_shapes
            _init_mla_scaling = lambda self, _: None  # noqa: E731

        model = Model()
        model._derive_model_shapes()
        model.mla = model.attention_arch == models.AttentionArch.MLA
        model.swa = models.is_hybrid_swa_model(hf.architectures, text)
        model.swa_ids, model.full_ids = (
            models.get_hybrid_layer_ids(hf.architectures, text) if model.swa else (None, None)
        )
        chunk = getattr(text, "attention_chunk_size", None)
        model.window = None if not model.swa else chunk or text.sliding_window - 1  # get_attention_sliding_window_size
        model.mamba = self.mamba(config, text, tp)
        model.extra_buffer = model.mamba is not None
        return model

    def mamba(self, config: dict, text: object, tp: int) -> object | None:
        """mamba2_cache_params of configs/{qwen3_next,qwen3_5,nemotron_h,kimi_linear}.py."""
        states, kind = self.states, config["model_type"]
        if kind in ("qwen3_next", "qwen3_5"):
            full = [i for i, layer in enumerate(text.layer_types) if layer == "full_attention"]
            recurrent = [i for i, layer in enumerate(text.layer_types) if layer == "linear_attention"]
            shape = states.Mamba2StateShape.create(
                tp_world_size=tp, n_groups=text.linear_num_key_heads, num_heads=text.linear_num_value_heads,
                intermediate_size=text.linear_value_head_dim * text.linear_num_value_heads,
                head_dim=text.linear_value_head_dim, state_size=text.linear_key_head_dim,
                conv_kernel=text.linear_conv_kernel_dim,
            )  # fmt: skip
        elif kind == "nemotron_h":
            full = [i for i, layer in enumerate(text.hybrid_override_pattern) if layer == "*"]
            recurrent = [i for i, layer in enumerate(text.hybrid_override_pattern) if layer == "M"]
            shape = states.Mamba2StateShape.create(
                tp_world_size=tp, intermediate_size=text.mamba_num_heads * text.mamba_head_dim,
                n_groups=text.n_groups, num_heads=text.mamba_num_heads, head_dim=text.mamba_head_dim,
                state_size=text.ssm_state_size, conv_kernel=text.conv_kernel,
            )  # fmt: skip
        elif kind == "kimi_linear":
            linear = text.linear_attn_config
            full, recurrent = ([i - 1 for i in ids] for ids in (linear.full_attn_layers, linear.kda_layers))
            shape = states.KimiLinearStateShape.create(
                tp_world_size=tp, num_heads=linear.num_heads, head_dim=linear.head_dim,
                conv_kernel_size=linear.short_conv_kernel_size,
            )  # fmt: skip
        else:
            return None
        params = states.Mamba2CacheParams(shape=shape, layers=recurrent)
        return Space(full_attention_layer_ids=full, mamba2_cache_params=params)

    def solve(self, config: dict, case: dict) -> dict:
        """The pools of one start: _resolve_memory_pool_config, given the bytes; the poorest stage decides under pp."""
        import torch

        model = self.model(config, case["tp"], case["context"])
        schedule = self.settings(case, model)
        dtype = torch.bfloat16 if case["element_bytes"] == 2 else torch.float8_e4m3fn
        sizes = self.sizes.KVCacheConfigurator
        outcomes = []
        for rank in range(case["pp"]):
            schedule.max_mamba_cache_size = case["max_mamba_cache_size"]
            start, end = stage(model.num_hidden_layers, rank, case["pp"])
            kvc = MagicMock()
            kvc.configure_mock(
                model_config=model, kv_cache_dtype=dtype, kv_cache_dtype_str="auto", use_mla_backend=model.mla,
                mambaish_config=model.mamba, is_hybrid_swa=model.swa, sliding_window_size=model.window,
                page_size=case["page_size"], attn_dp_size=case["attention_dp"], pp_size=case["pp"],
                extra_mamba_cache_bytes_per_req=0, is_draft_worker=False,
                layer_info=Space(
                    start_layer=start, end_layer=end, num_effective_layers=end - start,
                    full_attention_layer_ids=[i for i in model.full_ids or () if start <= i < end],
                    swa_attention_layer_ids=[i for i in model.swa_ids or () if start <= i < end],
                ),
            )  # fmt: skip
            kvc.server_args.enable_hisparse = False
            kvc.fused_entry_bytes = lambda _: None
            spec = kvc.spec_algorithm
            spec.is_none.return_value = True
            for name in ("is_eagle", "is_standalone", "is_dflash_family"):
                getattr(spec, name).return_value = False
            kvc._calculate_mamba_ratio = lambda kvc=kvc: sizes._calculate_mamba_ratio(kvc)
            kvc._apply_token_constraints = lambda tokens, kvc=kvc: sizes._apply_token_constraints(kvc, tokens)
            rest = case["pool_bytes"] / GIB
            try:
                if model.mamba is not None:
                    rest = sizes._handle_max_mamba_cache(kvc, rest)
                pool = sizes.config_from_budget(kvc, int(rest * GIB))
                slots = schedule.max_mamba_cache_size if model.mamba else None
                requests = sizes.resolve_max_num_reqs(kvc, pool.max_total_num_tokens)
            except (ValueError, RuntimeError) as refused:
                return {"refusal": str(refused).split(".")[0]}
            outcomes.append((pool, slots, requests))
        pool, slots, requests = min(outcomes, key=lambda outcome: outcome[0].max_total_num_tokens)
        return {
            "max_total_num_tokens": pool.max_total_num_tokens, "full_tokens": pool.full_max_total_num_tokens,
            "swa_tokens": pool.swa_max_total_num_tokens, "state_slots": slots, "requests": requests,
        }  # fmt: skip


def stage(layers: int, rank: int, stages: int) -> tuple[int, int]:
    """distributed/utils.py: get_pp_indices. The layers left over go to the last stages."""
    sizes = [layers // stages + (i >= stages - layers % stages) for i in range(stages)]
    return sum(sizes[:rank]), sum(sizes[: rank + 1])


DEFAULT = {
    "pool_bytes": 40 * GIB + 12345, "tp": 1, "pp": 1, "dcp": 1, "attention_dp": 1, "page_size": 1, "element_bytes": 2,
    "dsa_backend": "", "context": 131072, "swa_ratio": 0.8, "mamba_ratio": 0.9, "max_mamba_cache_size": None,
    "max_running_requests": None, "max_total_tokens": None, "radix_cache": True,
}  # fmt: skip


def cases(name: str) -> list[dict]:
    changes = [
        {}, {"tp": 8}, {"element_bytes": 1}, {"pp": 3}, {"page_size": 64, "context": 32768},
        {"max_total_tokens": 50_001}, {"max_running_requests": 100, "attention_dp": 4},
        {"max_running_requests": 64, "radix_cache": False}, {"pool_bytes": 3 * GIB + 7}, {"pool_bytes": 30_000_000},
    ]  # fmt: skip
    if any(word in name for word in ("gpt-oss", "gemma-4", "Llama-4")):
        changes += [{"swa_ratio": 0.1}, {"swa_ratio": 1.0, "page_size": 64}, {"swa_ratio": 0.001}]
    if any(word in name for word in ("Qwen3-Next", "Qwen3.5", "Nemotron", "Kimi")):
        changes += [{"mamba_ratio": 0.2}, {"max_mamba_cache_size": 40, "attention_dp": 2}, {"radix_cache": False}]
        changes += [{"max_mamba_cache_size": 2}]
    if any(word in name for word in ("V3", "V2-Lite")):
        changes += [{"tp": 8, "dcp": 8}]
    if any(word in name for word in ("V3.2", "GLM-5.2")):
        changes = [change | {"page_size": 64, "dsa_backend": "flashmla_kv"} for change in changes]
        changes += [{"page_size": 64, "element_bytes": 1, "dsa_backend": "trtllm"}]
    return [DEFAULT | change for change in changes]


def main(root: str) -> None:
    sglang = Sglang(Path(root))
    with (DATA / "sglang_pools.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name in CONFIGS:
            config = json.loads((DATA / "vllm_configs" / f"{name}.json").read_text())
            for case in cases(name):
                writer.writerow({"config": name} | case | sglang.solve(config, case))


if __name__ == "__main__":
    main(sys.argv[1])
