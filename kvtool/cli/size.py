"""`kvtool size`: what the KV cache of a model takes, and whether it fits a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.catalog.model import Model
from kvtool.cli.engine_options import (
    AsyncSchedulingOption,
    ChunkedPrefillSizeOption,
    DisableHybridOption,
    EngineBlockSizeOption,
    EngineOption,
    KvCacheMemoryBytesOption,
    MambaCacheModeOption,
    MambaFullMemoryRatioOption,
    MaxMambaCacheSizeOption,
    MaxRunningRequestsOption,
    MaxTotalTokensOption,
    MemFractionStaticOption,
    NumGpuBlocksOverrideOption,
    PrefixCachingOption,
    SwaFullTokensRatioOption,
    engine_options,
)
from kvtool.cli.memory_options import (
    CalibrationOption,
    DramOption,
    LengthsOption,
    MaxNumBatchedTokensOption,
    MaxNumSeqsOption,
    NvmeGbpsOption,
    NvmeOption,
    TiersOption,
    UsersOption,
    lengths_of,
    places,
    question,
)
from kvtool.cli.options import (
    AsOption,
    BatchSizeOption,
    ContextOption,
    DcpOption,
    DpAttentionOption,
    DpOption,
    EpOption,
    ExplainOption,
    FreeMemoryOption,
    GpuMemoryOption,
    GpuMemoryUtilizationOption,
    GpuOption,
    HeadDimOption,
    HeadsOption,
    IndexDtypeOption,
    JsonOption,
    KvCacheDtypeOption,
    KvHeadsOption,
    LayersOption,
    LayerSpecOption,
    MambaSsmCacheDtypeOption,
    MaxModelLenOption,
    ModelsOption,
    OutOption,
    PpOption,
    SharedPrefixOption,
    SpeculativeTokensOption,
    TpOption,
    WeightDtypeOption,
    chosen_gpu,
    chosen_model,
    count_list,
    length_list,
    longest_sequence,
    optional_size,
    prefix_length,
)
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.solve.solve import Question

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool size llama-3.1-8b --context 8k,128k --batch-size 1,16 --gpu h100\n\n"
    "  kvtool size gpt-oss-120b --engine vllm --kv-cache-memory-bytes 40GiB"
)


def size(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, a folder, config.json or .gguf file.")
    ] = None,
    layers: LayersOption = None,
    heads: HeadsOption = None,
    kv_heads: KvHeadsOption = None,
    head_dim: HeadDimOption = None,
    layer_spec: LayerSpecOption = None,
    as_family: AsOption = None,
    context: ContextOption = None,
    batch_size: BatchSizeOption = "1",
    kv_cache_dtype: KvCacheDtypeOption = "auto",
    block_size: EngineBlockSizeOption = None,
    shared_prefix: SharedPrefixOption = "0",
    tp: TpOption = 1,
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
    calibration: CalibrationOption = None,
    users: UsersOption = None,
    lengths: LengthsOption = None,
    tiers: TiersOption = False,
    dram: DramOption = None,
    nvme: NvmeOption = None,
    nvme_gbps: NvmeGbpsOption = None,
    weight_dtype: WeightDtypeOption = "auto",
    mamba_ssm_cache_dtype: MambaSsmCacheDtypeOption = "auto",
    index_dtype: IndexDtypeOption = "auto",
    num_speculative_tokens: SpeculativeTokensOption = 0,
    engine: EngineOption = None,
    kv_cache_memory_bytes: KvCacheMemoryBytesOption = None,
    num_gpu_blocks_override: NumGpuBlocksOverrideOption = None,
    async_scheduling: AsyncSchedulingOption = True,
    enable_prefix_caching: PrefixCachingOption = True,
    disable_hybrid_kv_cache_manager: DisableHybridOption = False,
    mamba_cache_mode: MambaCacheModeOption = "auto",
    mem_fraction_static: MemFractionStaticOption = None,
    chunked_prefill_size: ChunkedPrefillSizeOption = None,
    max_total_tokens: MaxTotalTokensOption = None,
    max_running_requests: MaxRunningRequestsOption = None,
    swa_full_tokens_ratio: SwaFullTokensRatioOption = None,
    mamba_full_memory_ratio: MambaFullMemoryRatioOption = None,
    max_mamba_cache_size: MaxMambaCacheSizeOption = None,
    explain: ExplainOption = False,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Size the KV cache of MODEL: bytes per token, per sequence and per GPU, what fits, and how fast decode can be."""
    from kvtool.results import read_calibration
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.parallel import Parallel
    from kvtool.sizing.weights import find_checkpoint

    chosen = chosen_model(
        model,
        models,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layer_spec=layer_spec,
        family=as_family,
    )
    parallel = Parallel(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep, dp_attention=enable_dp_attention)
    card = chosen_gpu(gpu, gpu_memory, free_memory)
    longest, auto_fit = longest_sequence(max_model_len)
    options = SizeOptions(
        contexts=length_list(context, "context") if context else (),
        batch_sizes=count_list(batch_size, "batch size"),
        kv_cache_dtypes=tuple(split_list(kv_cache_dtype)),
        block_size=16 if block_size is None else block_size,
        parallel=parallel,
        gpu=card,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=longest,
        shared_prefix=prefix_length(shared_prefix),
        weight_dtype=weight_dtype,
        state_dtype=mamba_ssm_cache_dtype,
        index_dtype=index_dtype,
        num_speculative_tokens=num_speculative_tokens,
        checkpoint=find_checkpoint(model) if model else None,
        engine=engine_options(
            engine,
            parallel=parallel,
            gpu=card,
            gpu_memory_utilization=gpu_memory_utilization,
            block_size=block_size,
            max_model_len=longest,
            auto_fit=auto_fit,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            kv_cache_memory_bytes=optional_size(kv_cache_memory_bytes, "kv cache memory bytes"),
            num_gpu_blocks_override=num_gpu_blocks_override,
            async_scheduling=async_scheduling,
            enable_prefix_caching=enable_prefix_caching,
            hybrid_kv_cache_manager=not disable_hybrid_kv_cache_manager,
            mamba_ssm_cache_dtype=mamba_ssm_cache_dtype,
            mamba_cache_mode=mamba_cache_mode,
            mem_fraction_static=mem_fraction_static,
            chunked_prefill_size=chunked_prefill_size,
            max_total_tokens=max_total_tokens,
            max_running_requests=max_running_requests,
            swa_full_tokens_ratio=swa_full_tokens_ratio,
            mamba_full_memory_ratio=mamba_full_memory_ratio,
            max_mamba_cache_size=max_mamba_cache_size,
            num_speculative_tokens=num_speculative_tokens,
        ),
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        calibration=read_calibration(calibration) if calibration else None,
        places=places(tiers, dram, nvme, nvme_gbps),
        lengths=lengths_of(lengths),
    )
    asked = question(ctx, users, model=model, model_id=chosen.id) if users is not None else None
    answer(chosen, options, asked, explain=explain, json=json, out=out)


def answer(
    model: Model, options: SizeOptions, asked: Question | None, *, explain: bool, json: bool, out: Path | None
) -> None:
    """Write the files, print the document; exit 1 where no row fits, nothing is found that would, or the engine
    would not start.
    """
    from kvtool.report.files import write_result
    from kvtool.report.size.budget import budget_figure
    from kvtool.report.size.planned import print_ledgers
    from kvtool.report.size.size import print_size, size_csv_rows, size_figure
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode
    from kvtool.sizing.explain import explain as explain_rows
    from kvtool.sizing.size import curve
    from kvtool.sizing.size import size as size_rows
    from kvtool.sizing.solve.solve import solve

    if asked is None:
        document = size_rows(model, options=options)
    else:
        document, options = solve(model, options, asked)
    if out is not None:
        chart = size_figure(size_rows(model, options=curve(model, options)))
        write_result(
            out,
            "size",
            document,
            rows=list(size_csv_rows(document)),
            figure=chart,
            more={"size-budget": figure} if (figure := budget_figure(document)) else None,
        )
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_size(document, Terminal())
    if explain:
        if not json:
            print_ledgers(document, Terminal())
        typer.echo("\n".join(explain_rows(model, options=options)), err=json)
    refused = all(row.fit.fits is False or row.engine.refusal for row in document.rows)
    if refused if document.solutions is None else not document.solutions:
        raise typer.Exit(1)
