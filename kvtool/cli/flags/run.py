"""How a model is run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.flags.shape import AsOption, check_named
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.catalog.model import Model
    from kvtool.engine.config import EngineConfig
    from kvtool.engine.sequence import SamplingParams
    from kvtool.machine.other_load import LoadMeter

RUN = "How it is run"
_option = partial(typer.Option, rich_help_panel=RUN)
BlockSizeOption = Annotated[int | None, _option(help="Tokens a page (default: 16, on CUDA 64).")]


@dataclass(frozen=True)
class Device(Group):
    """What runs it."""

    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    backend: Annotated[str, _option(help="auto, triton (GPU) or torch.")] = "auto"


@dataclass(frozen=True)
class Run(Device):
    """A model's weights, dtypes and pages, and what runs it."""

    weights: Annotated[
        str | None,
        typer.Option(help="random, a folder with safetensors, or a .gguf file (default: MODEL's own, if any)."),
    ] = None
    kv_cache_dtype: Annotated[
        str,
        typer.Option(
            help="auto (as --dtype), fp32, bf16, fp16, fp8, int8_per_token_head ...; on a CPU int4, q8_0 ... too, "
            "KEY/VALUE apart, +hadamard (a wrong one lists all)."
        ),
    ] = "auto"
    dtype: Annotated[str, _option(help="Of weights and activations: auto, fp32, bf16 or fp16.")] = "auto"
    block_size: BlockSizeOption = None
    num_layers: Annotated[
        int | None, _option(help="Run only the first N layers of a model too large for the device.")
    ] = None
    no_graphs: Annotated[
        bool, _option("--no-graphs", help="Launch decode steps kernel by kernel on a GPU, not as CUDA graphs.")
    ] = False
    index: Annotated[str, _option(help="How cached prefixes are found: radix (a tree) or hashed (as vLLM).")] = "radix"
    admission: Annotated[str, _option(help="Which pages are kept for others: always, or second-hit.")] = "always"
    partial_hits: Annotated[
        bool, _option("--partial-hits", help="Copy the part of a cached page that a prompt shares.")
    ] = False
    threads: Annotated[
        int | None, _option(min=1, help="CPU threads (default: physical cores, within a container's quota).")
    ] = None
    seed: Annotated[int, _option(min=0, help="Of random weights, prompts and sampling.")] = 0
    as_family: AsOption = None

    def weights_of(self, model: str | None) -> str:
        """--weights, which a MODEL that is a folder or file with weights implies; else random."""
        from kvtool.catalog.checkpoint import holds_weights, lone_gguf

        if self.weights is not None:
            return lone_gguf(self.weights)
        model = lone_gguf(model or "")
        return model if model and holds_weights(Path(model)) else "random"

    def model(self, name: str | None, models: Path | None, default: str | None = None) -> Model:
        """MODEL, else what the weights' own folder or file says, else `default`. Raises KvtoolError."""
        from kvtool.catalog.checkpoint import holds_weights, lone_gguf
        from kvtool.catalog.resolve import resolve_model

        weights = None if self.weights is None else Path(lone_gguf(self.weights))
        if name is None and weights is not None and holds_weights(weights):
            name = str(weights)
        check_named(self.as_family, name)
        name = name or default
        if name is None:
            raise KvtoolError("name a MODEL, or --weights FOLDER that has its config.json")
        chosen = resolve_model(name, models_path=models, family=self.as_family)
        if weights is None or not _says_model(weights):
            return chosen
        # Beside real weights their own config is the truth; a catalogue entry has only the family's defaults.
        return resolve_model(str(weights), models_path=models, family=self.as_family)

    def begin(self) -> LoadMeter:
        """Bind the threads, before anything imports torch, and count what others use from here on."""
        from kvtool.machine.other_load import LoadMeter
        from kvtool.machine.threads import bind_threads

        bind_threads(self.threads, self.device)
        return LoadMeter()

    def config(self, model: str | None, **more: Any) -> EngineConfig:
        """The config of a run of MODEL; `more` are other fields. Raises KvtoolError for what no run can be."""
        from kvtool.engine.config import EngineConfig, default_block_size

        return EngineConfig(
            weights=self.weights_of(model),
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            device=self.device,
            backend=self.backend,
            block_size=default_block_size(self.device) if self.block_size is None else self.block_size,
            num_layers=self.num_layers,
            threads=self.threads,
            seed=self.seed,
            graphs=not self.no_graphs,
            index=self.index,
            admission=self.admission,
            partial_hits=self.partial_hits,
            **more,
        )


@dataclass(frozen=True)
class Sampling(Group):
    """How much is generated, and how tokens are chosen."""

    output_len: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 64
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Do not stop at an end-of-text token.")] = False
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this probability.")] = 1.0

    def params(self) -> SamplingParams:
        """Raises KvtoolError for values that make no sense."""
        from kvtool.engine.sequence import SamplingParams

        return SamplingParams(
            max_tokens=self.output_len, temperature=self.temperature, top_p=self.top_p, ignore_eos=self.ignore_eos
        )


def _says_model(weights: Path) -> bool:
    """Whether the weights tell their model: a folder with a config.json, or a .gguf file."""
    if weights.is_dir():
        return (weights / "config.json").is_file()
    return weights.suffix == ".gguf" and weights.is_file()
