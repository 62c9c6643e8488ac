"""What is sized: sequences, how their cache is stored, and what drafts tokens ahead of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.flags.card import Card
from kvtool.cli.flags.engine import EngineFlags
from kvtool.cli.flags.group import Group
from kvtool.cli.values import count_list, length_list, optional_length
from kvtool.system.errors import KvtoolError
from kvtool.units import parse_length, split_list

if TYPE_CHECKING:
    from kvtool.sizing.drafts import DraftRequest
    from kvtool.sizing.options import SizeOptions
    from kvtool.sizing.parallel import Parallel

STORED = "How it is stored"
_option = partial(typer.Option, rich_help_panel=STORED)


@dataclass(frozen=True)
class Cache(Group):
    """Sequences and formats; every list is tried in full."""

    context: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tokens a sequence, as 4096,32k,1m (k is 1024).")
    ] = None
    batch_size: Annotated[str, typer.Option(metavar="LIST", help="Sequences at a time, as 1,8,32.")] = "1"
    kv_cache_dtype: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="auto, fp32, bf16, fp16, fp8, int8, nvfp4, fp8_ds_mla, q8_0, kivi_int4 ... (a wrong one lists all).",
        ),
    ] = "auto"
    max_model_len: Annotated[
        str | None,
        typer.Option(
            help="The longest sequence served (default: the model's own maximum; -1 with --engine: what fits)."
        ),
    ] = None
    block_size: Annotated[
        int | None, _option(help="Tokens a page (default: 16; with --engine, what the engine chooses).")
    ] = None
    shared_prefix: Annotated[
        str,
        _option(
            metavar="TOKENS",
            help="Tokens that all sequences begin with; stored once. To rank N items for one user: the user's tokens, "
            "with --context of user and item together and --batch-size N.",
        ),
    ] = "0"
    weight_dtype: Annotated[str, _option(help="auto, fp32, bf16, fp16, fp8, int8 or int4.")] = "auto"
    mamba_ssm_cache_dtype: Annotated[
        str, _option(help="Of recurrent state: auto (as vLLM chooses), fp32, bf16 or fp16.")
    ] = "auto"
    index_dtype: Annotated[
        str, _option(help="Of a sparse indexer's keys: auto (as its engine stores them), fp8, fp4, bf16.")
    ] = "auto"

    def options(
        self,
        card: Card,
        engine: EngineFlags,
        *,
        default_context: str | None = None,
        parallel: Parallel | None = None,
        num_speculative_tokens: int = 0,
        **more: Any,
    ) -> SizeOptions:
        """What to size, for that card and that engine's plan; `more` are other fields. Raises KvtoolError."""
        from kvtool.sizing.options import DEFAULT_BLOCK_SIZE, SizeOptions
        from kvtool.sizing.parallel import Parallel

        contexts = self.context if self.context is not None else default_context
        auto_fit = self.max_model_len == "-1"
        shared: dict[str, Any] = {
            "parallel": parallel or Parallel(),
            "gpu": card.found(),
            "gpu_memory_utilization": card.gpu_memory_utilization,
            "max_num_batched_tokens": card.max_num_batched_tokens,
            "max_num_seqs": card.max_num_seqs,
            "max_model_len": None if auto_fit else optional_length(self.max_model_len, "max model len"),
            "num_speculative_tokens": num_speculative_tokens,
        }
        return SizeOptions(
            contexts=() if contexts is None else length_list(contexts, "context"),
            batch_sizes=count_list(self.batch_size, "batch size"),
            kv_cache_dtypes=tuple(split_list(self.kv_cache_dtype)),
            block_size=DEFAULT_BLOCK_SIZE if self.block_size is None else self.block_size,
            shared_prefix=0 if self.shared_prefix == "0" else parse_length(self.shared_prefix, "shared prefix"),
            weight_dtype=self.weight_dtype,
            state_dtype=self.mamba_ssm_cache_dtype,
            index_dtype=self.index_dtype,
            engine=engine.start(
                auto_fit=auto_fit,
                block_size=self.block_size,
                mamba_ssm_cache_dtype=self.mamba_ssm_cache_dtype,
                **shared,
            ),
            **shared,
            **more,
        )


@dataclass(frozen=True)
class Drafts(Group):
    """Speculative decoding, as vLLM's JSON or as a draft and how many tokens."""

    num_speculative_tokens: Annotated[
        int, _option(help="Tokens drafted a step, by --draft or by the model's own draft layers (MTP).")
    ] = 0
    draft: Annotated[
        str | None, _option(metavar="MODEL", help="What drafts them: an EAGLE or DFlash head, a smaller model.")
    ] = None
    speculative_config: Annotated[
        str | None, _option(metavar="JSON", help='As vLLM\'s: {"method": "eagle3", "num_speculative_tokens": 3}.')
    ] = None

    def request(self, models: Path | None) -> DraftRequest | None:
        """What was asked for; None where nothing is drafted. Raises KvtoolError where both ways, or half of one, are
        given, and for a draft that nobody knows and that is no head of a known kind.
        """
        from kvtool.catalog.resolve import resolve_model
        from kvtool.sizing.drafts import needs_config

        request = self._asked()
        if request is None or request.name is None or not needs_config(request):
            return request
        try:
            return replace(request, model=resolve_model(request.name, models_path=models))
        except KvtoolError:
            if needs_config(request, strictly=True):
                raise
            return request

    def _asked(self) -> DraftRequest | None:
        from kvtool.sizing.drafts import DraftRequest, parse_speculative_config

        if self.speculative_config is not None:
            if self.draft is not None or self.num_speculative_tokens:
                raise KvtoolError("--speculative-config says it all: leave out --draft and --num-speculative-tokens")
            return parse_speculative_config(self.speculative_config)
        if self.draft is not None and not self.num_speculative_tokens:
            raise KvtoolError(f"--draft {self.draft} needs --num-speculative-tokens")
        if not self.num_speculative_tokens:
            return None
        return DraftRequest(tokens=self.num_speculative_tokens, name=self.draft)
