"""`kvtool verify`: what an engine logged at its start, beside what kvtool predicts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvtool.cli.engine_options import SWITCHES
from kvtool.cli.options import (
    CARD,
    LAYOUT,
    FreeMemoryOption,
    GpuMemoryOption,
    JsonOption,
    ModelsOption,
    chosen_gpu,
)

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool verify vllm.log llama-3.1-8b\n\n"
    "  kvtool verify vllm.log llama-3.1-8b --gpu a100-sxm-80gb --save measured.json"
)


def verify(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A start-up log or /metrics text, - for standard input.")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for `size`, where the log does not name it.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="The card, where the log does not tell its memory.", rich_help_panel=CARD),
    ] = None,
    gpu_memory: GpuMemoryOption = None,
    free_memory: FreeMemoryOption = None,
    tp: Annotated[
        int | None,
        typer.Option("--tp", help="Tensor parallel ranks, where the log does not say.", rich_help_panel=LAYOUT),
    ] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Pipeline stages.", rich_help_panel=LAYOUT)] = None,
    dp: Annotated[int | None, typer.Option("--dp", help="Data parallel replicas.", rich_help_panel=LAYOUT)] = None,
    dcp: Annotated[
        int | None, typer.Option("--dcp", help="Decode context parallel ranks.", rich_help_panel=LAYOUT)
    ] = None,
    ep: Annotated[int | None, typer.Option("--ep", help="Expert parallel ranks.", rich_help_panel=LAYOUT)] = None,
    max_model_len: Annotated[str | None, typer.Option("--max-model-len", help="The longest sequence served.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option("--kv-cache-dtype", help="Of the cache, as for `size`.")] = None,
    block_size: Annotated[int | None, typer.Option("--block-size", help="Tokens a block or page.")] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option("--max-num-batched-tokens", help="Tokens that vLLM runs in a step.", rich_help_panel=CARD),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", help="Sequences run at a time.", rich_help_panel=CARD)
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="vLLM's part of the card.", rich_help_panel=CARD)
    ] = None,
    mem_fraction_static: Annotated[
        float | None, typer.Option("--mem-fraction-static", help="SGLang's part of the card.", rich_help_panel=CARD)
    ] = None,
    mamba_ssm_cache_dtype: Annotated[
        str | None, typer.Option("--mamba-ssm-cache-dtype", help="Of recurrent state.")
    ] = None,
    async_scheduling: Annotated[
        bool | None,
        typer.Option(
            "--async-scheduling/--no-async-scheduling", help="vLLM's, on by default.", rich_help_panel=SWITCHES
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write what was measured, for `size --calibration`.")
    ] = None,
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Hold LOG against the prediction, term by term; exit 1 where a term that must be exact is off, or it refused."""
    from kvtool.results import encode
    from kvtool.units import parse_length
    from kvtool.verify.calibrate import save_calibration
    from kvtool.verify.lines import read_lines
    from kvtool.verify.read import read_facts
    from kvtool.verify.verify import Asked
    from kvtool.verify.verify import verify as verify_facts

    given = {
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "dcp": dcp,
        "ep": ep,
        "max_model_len": None if max_model_len is None else parse_length(max_model_len, "max model len"),
        "kv_cache_dtype": kv_cache_dtype,
        "block_size": block_size,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_num_seqs": max_num_seqs,
        "gpu_memory_utilization": gpu_memory_utilization,
        "mem_fraction_static": mem_fraction_static,
        "mamba_ssm_cache_dtype": mamba_ssm_cache_dtype,
        "async_scheduling": async_scheduling,
    }
    asked = Asked(
        model=model,
        gpu=chosen_gpu(gpu, gpu_memory, free_memory),
        flags={name: str(value) for name, value in given.items() if value is not None},
        models_path=models,
    )
    name = "standard input" if log == "-" else log
    facts = read_facts(read_lines(log), name)
    document = verify_facts(facts, asked, log=name)
    if save is not None:
        save_calibration(facts, name, save)
    if json:
        typer.echo(encode(document), nl=False)
    else:
        from kvtool.report.terminal import Terminal
        from kvtool.report.verify import print_verify

        print_verify(document, Terminal())
    if document.verdict in ("off", "refused"):
        raise typer.Exit(1)
