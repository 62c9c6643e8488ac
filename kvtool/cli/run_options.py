"""Options of the commands that run a model, and how they become an EngineConfig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.catalog.model import Model

if TYPE_CHECKING:
    from kvtool.engine.config import EngineConfig

WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", help="random, a folder with safetensors, or a .gguf file (default: MODEL's own, if any)."
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Of weights and activations: auto, fp32, bf16 or fp16.")]
RunKvCacheDtypeOption = Annotated[
    str, typer.Option("--kv-cache-dtype", help="auto (as --dtype), fp32, bf16, fp16, fp8 or fp8_e5m2.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, triton (GPU) or torch.")]
NumLayersOption = Annotated[
    int | None, typer.Option("--num-layers", help="Run only the first N layers of a model too large for the device.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads (default: physical cores, within a container's quota)."),
]
NoGraphsOption = Annotated[
    bool, typer.Option("--no-graphs", help="Launch decode steps kernel by kernel on a GPU, not as CUDA graphs.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of random weights, prompts and sampling.")]


def weights_of(name: str, weights: str | None) -> str:
    """What --weights means for MODEL: a MODEL that is a folder or file with weights implies them."""
    from kvtool.catalog.checkpoint import holds_weights

    if weights is not None:
        return weights
    return name if holds_weights(Path(name)) else "random"


def model_of(name: str | None, weights: str | None, models: Path | None, default: str | None = None) -> Model:
    """The model to run: MODEL, else what the weights' own folder or file says, else `default`. Raises KvtoolError."""
    from kvtool.catalog.checkpoint import holds_weights
    from kvtool.catalog.resolve import resolve_model
    from kvtool.errors import KvtoolError

    if name is None and weights is not None and holds_weights(Path(weights)):
        name = weights
    name = name or default
    if name is None:
        raise KvtoolError("name a MODEL, or --weights FOLDER that has its config.json")
    model = resolve_model(name, models_path=models)
    if weights is not None and Path(weights).is_dir() and (Path(weights) / "config.json").is_file():
        # Beside real weights their own config is the truth; a catalogue entry has only the family's defaults.
        model = resolve_model(weights, models_path=models)
    if weights is not None and weights.endswith(".gguf") and holds_weights(Path(weights)):
        model = resolve_model(weights, models_path=models)
    return model


def engine_config(
    *,
    weights: str,
    dtype: str,
    kv_cache_dtype: str,
    device: str,
    backend: str,
    block_size: int,
    num_layers: int | None,
    threads: int | None,
    seed: int,
    prefill_first: bool = False,
    prefix_caching: bool = True,
    graphs: bool = True,
) -> EngineConfig:
    """The options as a config. Raises KvtoolError for what no run can be."""
    from kvtool.engine.config import EngineConfig

    return EngineConfig(
        weights=weights,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
        backend=backend,
        block_size=block_size,
        num_layers=num_layers,
        threads=threads,
        seed=seed,
        prefill_first=prefill_first,
        prefix_caching=prefix_caching,
        graphs=graphs,
    )
