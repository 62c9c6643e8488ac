"""`kvtool kernels`: the attention kernels alone, next to what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.cli.bench import progress_bar
from kvtool.cli.options import JsonOption, ModelsOption, OutOption, count_list, length_list
from kvtool.cli.run_options import BackendOption, DeviceOption
from kvtool.units import parse_length, split_list

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool kernels smollm2-135m --context 512,4k --out kvtool-report\n\n"
    "  kvtool kernels llama-3.2-1b --context 1k --kv-cache-dtype bf16,fp8"
)


def kernels(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Whose layer shapes to run (default: one that suits the device)."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="LIST", help="Cached tokens a sequence, as 512,4k,16k (k is 1024).")
    ] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="LIST", help="Sequences a decode call, as 1,8,32.")] = None,
    chunk_len: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Tokens of a prefill chunk, the last of its context.")
    ] = None,
    kv_cache_dtype: Annotated[
        str, typer.Option(metavar="LIST", help="auto (as --dtype), fp32, bf16, fp16, fp8 or fp8_e5m2.")
    ] = "auto",
    block_size: Annotated[str, typer.Option(metavar="LIST", help="Tokens a page, as 16,64.")] = "16",
    dtype: Annotated[str, typer.Option(help="Of queries and outputs: auto, fp32, bf16 or fp16.")] = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    num_iters: Annotated[int | None, typer.Option(help="Measured passes a case.")] = None,
    num_iters_warmup: Annotated[int | None, typer.Option(help="Passes before, thrown away.")] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Time these beside ours, on the same pages: all, or of sdpa, flex, flashinfer, flash-attn, "
            "vllm-triton, sglang-triton.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random values and of the order of pages.")] = 0,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Time paged decode, prefill and KV store alone: GB/s and TFLOP/s next to what this machine can do."""
    from kvtool.bench.kernels.kernels import measure_kernels
    from kvtool.bench.kernels.options import default_model, kernels_options
    from kvtool.bench.peers import peer_names
    from kvtool.catalog.resolve import resolve_model
    from kvtool.report.files import check_writable
    from kvtool.report.kernels.kernels import print_kernels, write_kernels
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode

    if out is not None:
        check_writable(out)
    chosen = resolve_model(model if model is not None else default_model(device), models_path=models)
    options = kernels_options(
        device,
        contexts=length_list(context, "context") if context is not None else None,
        batch_sizes=count_list(batch_size, "batch size") if batch_size is not None else None,
        chunk_len=parse_length(chunk_len, "chunk length") if chunk_len is not None else None,
        kv_cache_dtypes=tuple(split_list(kv_cache_dtype)),
        block_sizes=count_list(block_size, "block size"),
        dtype=dtype,
        backend=backend,
        num_iters=num_iters,
        num_iters_warmup=num_iters_warmup,
        seed=seed,
        peers=peer_names(split_list(peers)) if peers is not None else (),
    )
    with progress_bar() as progress:
        outcome = measure_kernels(chosen, options, progress=progress)
    if out is not None:
        write_kernels(outcome.document, out)
    if json:
        typer.echo(encode(outcome.document), nl=False)
    else:
        print_kernels(outcome.document, Terminal())
    for line in (*outcome.errors, *outcome.unequal):
        typer.echo(f"kvtool: {line}", err=True)
    if outcome.interrupted:
        typer.echo("kvtool: interrupted; the cases that were done are kept", err=True)
        raise typer.Exit(130)
    if outcome.errors or outcome.unequal:
        raise typer.Exit(3 if outcome.errors else 1)
