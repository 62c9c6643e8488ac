"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.units import parse_length, parse_size, split_list

if TYPE_CHECKING:
    from kvtool.catalog.gpus import Gpu

# Panels of --help.
SHAPE = "Instead of MODEL"
LAYOUT = "Layout over GPUs"
CARD = "A card and its memory"

ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", metavar="FILE", help="A catalogue to use instead of kvtool's own models.yaml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Also write the result as .json, .csv and .png into DIR.")
]
ContextOption = Annotated[
    str | None, typer.Option("--context", metavar="LIST", help="Tokens a sequence, as 4096,32k,1m (k is 1024).")
]
BatchSizeOption = Annotated[str, typer.Option("--batch-size", metavar="LIST", help="Sequences at a time, as 1,8,32.")]
KvCacheDtypeOption = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        metavar="LIST",
        help="auto, fp32, bf16, fp16, fp8, int8, nvfp4, fp8_ds_mla, q8_0, kivi_int4 ... (a wrong one lists all).",
    ),
]
BlockSizeOption = Annotated[int, typer.Option("--block-size", help="Tokens a page.")]
TpOption = Annotated[int, typer.Option("--tp", help="Tensor parallel ranks.", rich_help_panel=LAYOUT)]
PpOption = Annotated[int, typer.Option("--pp", help="Pipeline stages.", rich_help_panel=LAYOUT)]
DpOption = Annotated[
    int, typer.Option("--dp", help="Data parallel replicas: each holds its own sequences.", rich_help_panel=LAYOUT)
]
DcpOption = Annotated[
    int, typer.Option("--dcp", help="Decode context parallel ranks, out of the tp ranks.", rich_help_panel=LAYOUT)
]
EpOption = Annotated[
    int, typer.Option("--ep", help="Expert parallel ranks, out of the tp x dp ranks.", rich_help_panel=LAYOUT)
]
DpAttentionOption = Annotated[
    bool,
    typer.Option(
        "--enable-dp-attention",
        help="dp divides the tp ranks into replicas of attention, as in SGLang.",
        rich_help_panel=LAYOUT,
    ),
]
MaxModelLenOption = Annotated[
    str | None,
    typer.Option(
        "--max-model-len",
        help="The longest sequence served (default: the model's own maximum; -1 with --engine: what fits).",
    ),
]
LayersOption = Annotated[int | None, typer.Option("--layers", help="Layers of the shape.", rich_help_panel=SHAPE)]
HeadsOption = Annotated[int | None, typer.Option("--heads", help="Query heads.", rich_help_panel=SHAPE)]
LayerSpecOption = Annotated[
    Path | None,
    typer.Option(
        "--layer-spec",
        metavar="FILE",
        help="Layers written out, in YAML or JSON.",
        rich_help_panel=SHAPE,
    ),
]
AsOption = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="FAMILY",
        help="Read the config of an architecture that kvtool does not know as another: llama, qwen3_moe ...",
        rich_help_panel=SHAPE,
    ),
]
KvHeadsOption = Annotated[
    int | None,
    typer.Option("--kv-heads", help="KV heads (default: as heads).", rich_help_panel=SHAPE),
]
HeadDimOption = Annotated[int | None, typer.Option("--head-dim", help="Elements of a head.", rich_help_panel=SHAPE)]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", help="Does it fit this card? A name of `kvtool gpus`, or local.", rich_help_panel=CARD),
]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--gpu-memory",
        metavar="SIZE",
        help="What the card's driver reports, as 24GiB: instead of kvtool's figure, or of --gpu.",
        rich_help_panel=CARD,
    ),
]
FreeMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--free-memory",
        metavar="SIZE",
        help="What other processes, or the system of unified memory, leave of the card.",
        rich_help_panel=CARD,
    ),
]
GpuMemoryUtilizationOption = Annotated[
    float,
    typer.Option("--gpu-memory-utilization", help="Part of the card's memory that may be used.", rich_help_panel=CARD),
]
SharedPrefixOption = Annotated[
    str,
    typer.Option(
        "--shared-prefix",
        metavar="TOKENS",
        help="Tokens that all sequences begin with; stored once. To rank N items for one user: the user's tokens, with "
        "--context of user and item together and --batch-size N.",
    ),
]
WeightDtypeOption = Annotated[str, typer.Option("--weight-dtype", help="auto, fp32, bf16, fp16, fp8, int8 or int4.")]
MambaSsmCacheDtypeOption = Annotated[
    str,
    typer.Option("--mamba-ssm-cache-dtype", help="Of recurrent state: auto (as vLLM chooses), fp32, bf16 or fp16."),
]
IndexDtypeOption = Annotated[
    str,
    typer.Option("--index-dtype", help="Of a sparse indexer's keys: auto (as its engine stores them), fp8, fp4, bf16."),
]
SpeculativeTokensOption = Annotated[
    int, typer.Option("--num-speculative-tokens", help="Tokens drafted a step by the model's own draft layers (MTP).")
]
ExplainOption = Annotated[bool, typer.Option("--explain", help="Print every formula with the numbers put in.")]


def length_list(text: str, what: str) -> tuple[int, ...]:
    """Token counts of a comma list: `4k,128k`. Raises KvtoolError."""
    return tuple(parse_length(item, what) for item in split_list(text))


def count_list(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers of a comma list: `1,8,32`. Raises KvtoolError; their range is the callee's to check."""
    return tuple(parse_count(item, what) for item in split_list(text))


def parse_count(text: str, what: str) -> int:
    """A whole number. Raises KvtoolError."""
    try:
        return int(text)
    except ValueError:
        raise KvtoolError(f"{what} {text!r} is not a whole number: write a list as 1,8,32") from None


def optional_length(text: str | None, what: str) -> int | None:
    """Tokens, or None where the option was not given. Raises KvtoolError."""
    return None if text is None else parse_length(text, what)


def longest_sequence(text: str | None) -> tuple[int | None, bool]:
    """(--max-model-len or None, whether it is -1: what fits). Raises KvtoolError."""
    return (None, True) if text == "-1" else (optional_length(text, "max model len"), False)


def prefix_length(text: str) -> int:
    """--shared-prefix in tokens, 0 for none. Raises KvtoolError."""
    return 0 if text == "0" else parse_length(text, "shared prefix")


def chosen_gpu(name: str | None, memory: str | None, free: str | None) -> Gpu | None:
    """The card of --gpu, --gpu-memory and --free-memory; None where none of them is given. Raises KvtoolError."""
    from kvtool.catalog.gpus import choose_gpu

    return choose_gpu(
        name, memory_bytes=optional_size(memory, "gpu memory"), free_bytes=optional_size(free, "free memory")
    )


def optional_size(text: str | None, what: str) -> int | None:
    """Bytes, or None where the option was not given. Raises KvtoolError, for nothing at all too."""
    size_bytes = None if text is None else parse_size(text, what)
    if size_bytes == 0:
        raise KvtoolError(f"{what} {text!r} holds nothing: write a size as 256GiB or 1TB")
    return size_bytes


def chosen_model(
    name: str | None,
    models_path: Path | None,
    *,
    layers: int | None,
    heads: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    layer_spec: Path | None = None,
    family: str | None = None,
) -> Model:
    """MODEL (read as `family` where --as names one), or the shape or layer spec given instead of it (`kv_heads`
    defaults to `heads`). Raises KvtoolError.
    """
    from kvtool.catalog.resolve import inline_model, resolve_model

    shape = {"--layers": layers, "--heads": heads, "--kv-heads": kv_heads, "--head-dim": head_dim}
    given = [flag for flag, value in shape.items() if value is not None]
    if layer_spec is not None:
        from kvtool.catalog.layer_spec import read_layer_spec

        if name is not None or given:
            raise KvtoolError(
                f"--layer-spec {layer_spec} is a model of its own: leave out {', '.join(given) or 'MODEL'}"
            )
        return read_layer_spec(layer_spec)
    if name is not None and given:
        raise KvtoolError(f"{name!r} already has a shape: leave out {', '.join(given)}, or MODEL")
    if name is not None:
        return resolve_model(name, models_path=models_path, family=family)
    if family is not None:
        raise KvtoolError(f"--as {family} is how to read MODEL's config: name its file, folder or repository")
    if layers is None or heads is None or head_dim is None:
        raise KvtoolError("name a MODEL, or give --layers, --heads, --head-dim (and --kv-heads), or --layer-spec FILE")
    return inline_model(layers=layers, heads=heads, kv_heads=heads if kv_heads is None else kv_heads, head_dim=head_dim)
