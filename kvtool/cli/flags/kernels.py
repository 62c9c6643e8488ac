"""What `kvtool kernels` times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.run import Device
from kvtool.cli.values import optional_counts, optional_length, optional_lengths
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.bench.kernels.options import KernelsOptions


@dataclass(frozen=True)
class KernelsGrid(Device):
    """The grid of calls, what runs them, and how often each is timed."""

    context: Annotated[
        str | None, typer.Option(metavar="LIST", help="Cached tokens a sequence, as 512,4k,16k (k is 1024).")
    ] = None
    batch_size: Annotated[str | None, typer.Option(metavar="LIST", help="Sequences a decode call, as 1,8,32.")] = None
    chunk_len: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Tokens of a prefill chunk, the last of its context.")
    ] = None
    kv_cache_dtype: Annotated[
        str, typer.Option(metavar="LIST", help="auto (as --dtype), fp32, bf16, fp16, fp8 or fp8_e5m2.")
    ] = "auto"
    block_size: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tokens a page, as 16,64 (default: 16, on CUDA 64).")
    ] = None
    dtype: Annotated[str, typer.Option(help="Of queries and outputs: auto, fp32, bf16 or fp16.")] = "auto"
    num_iters: Annotated[int | None, typer.Option(help="Measured passes a case.")] = None
    num_iters_warmup: Annotated[int | None, typer.Option(help="Passes before, thrown away.")] = None
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Time these beside ours, on the same pages: all, or of sdpa, cudnn, naive, gathered, flex, "
            "flashinfer, flashinfer-xqa, flash-attn, vllm-triton, sglang-triton.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of random values and of the order of pages.")] = 0

    def options(self) -> KernelsOptions:
        """The options, with the device's defaults. Raises KvtoolError."""
        from kvtool.bench.kernels.options import kernels_options
        from kvtool.bench.peers import peer_names

        return kernels_options(
            self.device,
            contexts=optional_lengths(self.context, "context"),
            batch_sizes=optional_counts(self.batch_size, "batch size"),
            chunk_len=optional_length(self.chunk_len, "chunk length"),
            kv_cache_dtypes=tuple(split_list(self.kv_cache_dtype)),
            block_sizes=optional_counts(self.block_size, "block size"),
            dtype=self.dtype,
            backend=self.backend,
            num_iters=self.num_iters,
            num_iters_warmup=self.num_iters_warmup,
            seed=self.seed,
            peers=() if self.peers is None else peer_names(split_list(self.peers)),
        )
