"""`kvtool compare`: models by what their caches take, or bench documents by what they measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.engine_options import (
    EngineBlockSizeOption,
    EngineOption,
    KvCacheMemoryBytesOption,
    engine_options,
)
from kvtool.cli.memory_options import MaxNumBatchedTokensOption, MaxNumSeqsOption
from kvtool.cli.options import (
    BatchSizeOption,
    ContextOption,
    DcpOption,
    DpAttentionOption,
    DpOption,
    EpOption,
    FreeMemoryOption,
    GpuMemoryOption,
    GpuMemoryUtilizationOption,
    GpuOption,
    IndexDtypeOption,
    JsonOption,
    KvCacheDtypeOption,
    MambaSsmCacheDtypeOption,
    MaxModelLenOption,
    ModelsOption,
    OutOption,
    PpOption,
    SharedPrefixOption,
    WeightDtypeOption,
    chosen_gpu,
    count_list,
    length_list,
    longest_sequence,
    optional_size,
    prefix_length,
)
from kvtool.errors import KvtoolError
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.parallel import Parallel

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool compare llama-3.1-8b qwen3-8b --tp 1,8 --kv-cache-dtype bf16,fp8\n\n"
    "  kvtool compare deepseek-v3 llama-3.1-70b --context 32k --tp 8 --gpu h200"
)
DEFAULT_CONTEXTS = "4k,32k"
FOR_MODELS = (
    *("context", "batch_size", "kv_cache_dtype", "block_size", "tp", "pp", "dp", "dcp", "ep", "gpu"),
    *("gpu_memory_utilization", "engine", "kv_cache_memory_bytes", "models", "shared_prefix", "enable_dp_attention"),
    *("max_model_len", "max_num_batched_tokens", "max_num_seqs", "weight_dtype", "mamba_ssm_cache_dtype"),
    *("index_dtype", "gpu_memory", "free_memory"),
)


def compare(
    call: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...", help="Two or more models, or bench documents: base/bench.json new/bench.json."
        ),
    ],
    fail_on_regression: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Documents: exit 1 if a metric is worse by more, as 5%.")
    ] = None,
    context: ContextOption = None,
    batch_size: BatchSizeOption = "1",
    kv_cache_dtype: KvCacheDtypeOption = "auto",
    block_size: EngineBlockSizeOption = None,
    shared_prefix: SharedPrefixOption = "0",
    tp: Annotated[str, typer.Option("--tp", metavar="LIST", help="Tensor parallel ranks, as 1,8.")] = "1",
    pp: PpOption = 1,
    dp: DpOption = 1,
    dcp: DcpOption = 1,
    ep: EpOption = 1,
    enable_dp_attention: DpAttentionOption = False,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    free_memory: FreeMemoryOption = None,
    gpu_memory_utilization: GpuMemoryUtilizationOption = 0.92,
    max_model_len: MaxModelLenOption = None,
    max_num_batched_tokens: MaxNumBatchedTokensOption = None,
    max_num_seqs: MaxNumSeqsOption = None,
    weight_dtype: WeightDtypeOption = "auto",
    mamba_ssm_cache_dtype: MambaSsmCacheDtypeOption = "auto",
    index_dtype: IndexDtypeOption = "auto",
    engine: EngineOption = None,
    kv_cache_memory_bytes: KvCacheMemoryBytesOption = None,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Compare models by the memory of their caches, or benchmarks by their metrics; the first is the baseline."""
    from kvtool.compare.sources import are_documents
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.parallel import Parallel

    if are_documents(names):
        for option in FOR_MODELS:
            if (source := call.get_parameter_source(option)) is not None and source.name == "COMMANDLINE":
                raise KvtoolError(f"--{option.replace('_', '-')} is for models: documents say what they ran with")
        limit = None if fail_on_regression is None else parse_percent(fail_on_regression)
        compare_documents(names, limit, json=json, out=out)
        return
    if fail_on_regression is not None:
        raise KvtoolError("--fail-on-regression is for bench documents: models have no measurements")
    card = chosen_gpu(gpu, gpu_memory, free_memory)
    longest, auto_fit = longest_sequence(max_model_len)
    options = SizeOptions(
        contexts=length_list(context or DEFAULT_CONTEXTS, "context"),
        batch_sizes=count_list(batch_size, "batch size"),
        kv_cache_dtypes=tuple(split_list(kv_cache_dtype)),
        block_size=16 if block_size is None else block_size,
        gpu=card,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=longest,
        shared_prefix=prefix_length(shared_prefix),
        weight_dtype=weight_dtype,
        state_dtype=mamba_ssm_cache_dtype,
        index_dtype=index_dtype,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        engine=engine_options(
            engine,
            gpu=card,
            gpu_memory_utilization=gpu_memory_utilization,
            block_size=block_size,
            max_model_len=longest,
            auto_fit=auto_fit,
            kv_cache_memory_bytes=optional_size(kv_cache_memory_bytes, "kv cache memory bytes"),
            mamba_ssm_cache_dtype=mamba_ssm_cache_dtype,
        ),
    )
    layouts = [
        Parallel(tp=ranks, pp=pp, dp=dp, dcp=dcp, ep=ep, dp_attention=enable_dp_attention)
        for ranks in count_list(tp, "tp")
    ]
    compare_models(names, options, layouts, models_path=models, json=json, out=out)


def parse_percent(text: str) -> float:
    """`5%` -> 0.05. Raises KvtoolError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise KvtoolError(f"--fail-on-regression {text!r} is not a percentage: write 5%")
    return float(match[1]) / 100


def compare_documents(names: list[str], limit: float | None, *, json: bool, out: Path | None) -> None:
    """Print or write the comparison of bench documents; exit 1 for a regression beyond `limit`."""
    from kvtool.compare import documents
    from kvtool.compare.sources import read_bench
    from kvtool.report.compare.benches import print_compare, write_compare
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode

    baseline, *others = [read_bench(name) for name in names]
    document = documents.compare_documents(baseline, others)
    if out is not None:
        write_compare(out, document)
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_compare(document, Terminal())
    failing = [] if limit is None else documents.regressions(document.rows, limit)
    for row in failing:
        typer.echo(f"regression: {row.document}: {row.case} {row.metric} {row.verdict}", err=True)
    if failing:
        raise typer.Exit(1)


def compare_models(
    names: list[str],
    options: SizeOptions,
    layouts: list[Parallel],
    *,
    models_path: Path | None,
    json: bool,
    out: Path | None,
) -> None:
    """Print or write the matrix of models."""
    from kvtool.catalog.resolve import resolve_model
    from kvtool.compare import models
    from kvtool.report.compare.models import print_matrix, write_matrix
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode

    chosen = [resolve_model(name, models_path=models_path) for name in names]
    document = models.compare_models(chosen, options, layouts)
    if out is not None:
        write_matrix(out, document)
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_matrix(document, Terminal())
