"""The weights of a run as a folder that other engines load: the user's own, or our random ones written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kvtool.bench.engines.config_json import config_json
from kvtool.bench.peers import PeerError, imported
from kvtool.engine.decoder.transformer import runnable_decoder
from kvtool.engine.loaded import TORCH_DTYPES, LoadedModel

SHARD_BYTES = 2 << 30  # held on the CPU at once
SPARE_TOKENS = 512  # of a sequence's last page, and of pages that an engine keeps for itself


@dataclass(frozen=True)
class Checkpoint:
    """`folder` has config.json and safetensors. At most `max_batch` sequences of `max_tokens` are asked for at once,
    whose K and V take `token_bytes` a token."""

    folder: Path
    device: torch.device
    dtype: str
    max_tokens: int
    max_batch: int
    token_bytes: int

    @property
    def torch_dtype(self) -> str:
        """`bfloat16`, as other engines spell it."""
        return str(TORCH_DTYPES[self.dtype]).removeprefix("torch.")

    @property
    def roomy_tokens(self) -> int:
        """Slots of a pool in which nothing ever waits, whatever its pages."""
        return self.max_batch * (self.max_tokens + SPARE_TOKENS) + SPARE_TOKENS

    @property
    def roomy_kv_bytes(self) -> int:
        return self.roomy_tokens * self.token_bytes

    def require_first_gpu(self, library: str) -> None:
        """Raises PeerError elsewhere: such a library chooses its device by itself."""
        if self.device.type != "cuda" or self.device.index:
            raise PeerError(f"{library} is compared on the first CUDA device, not on {self.device}")

    @cached_property
    def in_transformers(self) -> Any:
        """The model as transformers loads it, once for all its ways to generate. Never ends an answer early."""
        transformers = imported("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        dtype = TORCH_DTYPES[self.dtype]
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(self.device).eval()
        model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
        return model


@contextmanager
def weights_folder(loaded: LoadedModel) -> Iterator[Path]:
    """A folder with the weights of `loaded`, deleted at the end if it was written here. Raises PeerError, OSError."""
    given = Path(loaded.config.weights)
    if not loaded.weights.even_routing:
        if not (given / "config.json").is_file():
            raise PeerError(f"{given} has no config.json: other engines load a folder with one")
        if loaded.model.num_layers != loaded.num_layers_of:
            raise PeerError("--num-layers cuts random weights only: a folder is loaded whole by other engines")
        yield given
        return
    with TemporaryDirectory(prefix="kvtool-weights-") as temporary:
        write_random(loaded, Path(temporary))
        yield Path(temporary)


def write_random(loaded: LoadedModel, folder: Path) -> None:
    """config.json and the tensors that a transformers model of it has, each drawn as our decoder drew it."""
    decoder = runnable_decoder(loaded.model)
    config = config_json(loaded.model, decoder, dtype=loaded.dtype, max_positions=loaded.max_positions)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    files: dict[str, str] = {}
    for number, shard in enumerate(_shards(loaded, _shapes(folder)), 1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of the config's own class, tied ones once, none of them allocated."""
    transformers = imported("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _shards(loaded: LoadedModel, shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        shard[name] = loaded.weights.tensor(name, *shape).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
