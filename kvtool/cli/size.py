"""`kvtool size`: what the KV cache of a model takes, and whether it fits a card."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.cli.options import (
    BatchSizeOption,
    BlockSizeOption,
    ContextOption,
    DcpOption,
    DpOption,
    EpOption,
    JsonOption,
    KvCacheDtypeOption,
    MaxModelLenOption,
    ModelsOption,
    OutOption,
    PpOption,
    TpOption,
    chosen_model,
    count_list,
    length_list,
    optional_length,
)
from kvtool.units import parse_length, split_list

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool size llama-3.1-8b --context 8k,128k --batch-size 1,16 --kv-cache-dtype bf16,fp8 --gpu h100\n\n"
    "  kvtool size deepseek-v3 --tp 8 --context 32k --explain"
)


def size(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, a folder, config.json or .gguf file.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Instead of MODEL: layers of the shape to size.")] = None,
    heads: Annotated[int | None, typer.Option(help="Instead of MODEL: query heads.")] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="Instead of MODEL: KV heads (default: as many as heads).")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(help="Instead of MODEL: elements of a head.")] = None,
    context: ContextOption = None,
    batch_size: BatchSizeOption = "1",
    kv_cache_dtype: KvCacheDtypeOption = "auto",
    block_size: BlockSizeOption = 16,
    shared_prefix: Annotated[
        str, typer.Option(metavar="TOKENS", help="Tokens that all sequences begin with; stored once.")
    ] = "0",
    tp: TpOption = 1,
    pp: PpOption = 1,
    dp: DpOption = 1,
    dcp: DcpOption = 1,
    ep: EpOption = 1,
    gpu: Annotated[str | None, typer.Option(help="Does it fit this card? A name of `kvtool gpus`, or local.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Part of the card's memory that may be used.")] = 0.92,
    max_model_len: MaxModelLenOption = None,
    weight_dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, fp8, int8 or int4.")] = "auto",
    mamba_ssm_cache_dtype: Annotated[
        str, typer.Option(help="Of recurrent state: auto (as vLLM chooses), fp32, bf16 or fp16.")
    ] = "auto",
    explain: Annotated[bool, typer.Option("--explain", help="Print every formula with the numbers put in.")] = False,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Size the KV cache of MODEL: bytes per token, per sequence and per GPU, what fits, and how fast decode can be."""
    from rich.console import Console

    from kvtool.catalog.gpus import find_gpu
    from kvtool.report.files import write_result
    from kvtool.report.size import print_size, size_csv_rows, size_figure
    from kvtool.results import encode
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.parallel import Parallel
    from kvtool.sizing.size import curve
    from kvtool.sizing.size import size as size_models
    from kvtool.sizing.weights import find_checkpoint

    chosen = chosen_model(model, models, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    options = SizeOptions(
        contexts=length_list(context, "context") if context else (),
        batch_sizes=count_list(batch_size, "batch size"),
        kv_cache_dtypes=tuple(split_list(kv_cache_dtype)),
        block_size=block_size,
        parallel=Parallel(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep),
        gpu=find_gpu(gpu) if gpu else None,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=optional_length(max_model_len, "max model len"),
        shared_prefix=0 if shared_prefix == "0" else parse_length(shared_prefix, "shared prefix"),
        weight_dtype=weight_dtype,
        state_dtype=mamba_ssm_cache_dtype,
        checkpoint=find_checkpoint(model) if model else None,
    )
    document = size_models(chosen, options=options)
    if out is not None:
        figure = size_figure(size_models(chosen, options=curve(chosen, options)))
        write_result(out, "size", document, rows=list(size_csv_rows(document)), figure=figure)
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_size(document, Console())
    if explain:
        from kvtool.sizing import explain as formulas

        typer.echo("\n".join(formulas.explain(chosen, options=options)), err=json)
    if document.rows and all(row.fit.fits is False for row in document.rows):
        raise typer.Exit(1)
