"""A model ready to run: its weights on their device, and what of the run follows from model and config alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from kvtool.catalog.model import Model, SlidingAttention
from kvtool.engine.config import EngineConfig, resolve_backend, resolve_dtype, truncated
from kvtool.engine.decoder.part import Part, Whole
from kvtool.engine.decoder.transformer import Transformer, runnable_decoder
from kvtool.engine.kept import Kept, kept
from kvtool.engine.offload.notices import Notices
from kvtool.engine.pool import KvPool, pool_specs, require_runnable
from kvtool.engine.weights.load import weight_source
from kvtool.engine.weights.scales import calibration_text, measured_amax
from kvtool.kernels import load_kernels
from kvtool.kernels.interface import Kernels
from kvtool.machine.device import device_errors, resolve_device
from kvtool.machine.memory import available_bytes
from kvtool.machine.threads import check_threads, default_threads, threads_beside
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import count_params
from kvtool.sizing.specs import CacheSpec
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.units import ceil_div, format_bytes

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoadedModel:
    """A decoder on its device, with the specs of its cache. Engines with pools of different sizes can share it.

    Nothing is loaded where it and a pool of `num_pages`, or of one sequence of `max_positions`, have no room together.
    """

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        *,
        max_positions: int,
        num_pages: int = 0,
        part: Part | None = None,
    ) -> None:
        """`part` is what this process has of the model: all, where None says nothing else."""
        runnable_decoder(model)
        self.part = part or Whole()
        self.notices = Notices()
        self.model = truncated(model, config.num_layers)
        self.num_layers_of = model.num_layers
        self.config = config
        self.device = self.part.device(resolve_device(config.device))
        check_threads(config.threads)
        self.fewer_threads = self._set_threads()
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # kernels are launched, and graphs replayed, on the current one
        self.dtype = resolve_dtype(config.dtype, model, self.device)
        cache_format = parse_cache_format(
            self.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype, self.dtype
        )
        require_runnable(cache_format)
        self.backend = resolve_backend(config.backend, self.device)
        self.own_model = self.part.model(self.model)
        self.kept = self.keeping(cache_format)
        self.max_positions = max_positions
        weights_bytes = self._require_room_for_weights()
        pages = max(num_pages, ceil_div(max_positions, config.block_size))
        self.require_room(pages, beside_bytes=weights_bytes)
        source = weight_source(self.model, config, self.torch_dtype, self.device)
        self.weights = self.part.weights(source, self.model)
        with device_errors(f"loading {model.id}"):
            self.transformer = Transformer(
                self.own_model,
                self.weights,
                self.kernels,
                max_positions=max_positions,
                dtype=self.torch_dtype,
                device=self.device,
                others=self.part.communicator,
            )
            self.amax = measured_amax(self) if cache_format.calibrated else None

    def new_pool(self, num_pages: int, block_size: int) -> KvPool:
        """Pages of `block_size` tokens of the cache manager, for all layers; of which ranks may share the tokens."""
        return KvPool(self.specs, num_pages, block_size // self.part.token_shards, self.device, self.amax)

    def _set_threads(self) -> str | None:
        """As many as were asked for, else as are fastest beside others; in words why they are fewer than usual."""
        usual = default_threads(torch.get_num_threads())
        other_cores = None if self.config.threads or self.device.type != "cpu" else self.config.other_cores
        threads, why = threads_beside(other_cores, self.config.threads or usual)
        torch.set_num_threads(threads)
        return why

    def keeping(self, cache_format: CacheFormat, *, as_decoded: bool = False, backend: str | None = None) -> Kept:
        """The same model's cache in that format, by the run's own kernels or those of another `backend`. Raises
        KvtoolError where its attention does not go with it."""
        whole = kept(
            self.model,
            cache_format,
            load_kernels(backend or self.backend),
            block_size=self.config.block_size,
            device=self.device,
            as_decoded=as_decoded,
            max_step_tokens=self.config.max_num_batched_tokens,
        )
        if self.part.ranks == 1:
            return whole
        if cache_format.sparse is not None:
            raise KvtoolError(f"a {cache_format.name} cache is read in part, by one process alone: leave the ranks out")
        specs = pool_specs(layer_specs(self.model, whole.cache_format, tp=self.part.tensor_ranks))
        return replace(whole, specs=specs, kernels=self.part.kernels(whole.kernels))

    @property
    def cache_format(self) -> CacheFormat:
        """Of the run's own cache."""
        return self.kept.cache_format

    @property
    def specs(self) -> tuple[CacheSpec, ...]:
        """By layer, of the run's own cache."""
        return self.kept.specs

    @property
    def kernels(self) -> Kernels:
        """Which write and read the run's own cache."""
        return self.kept.kernels

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return TORCH_DTYPES[self.dtype]

    @property
    def capturable(self) -> bool:
        """Whether decode steps can be CUDA graphs: Triton's kernels never wait for the device, the others do."""
        ready = self.device.type == "cuda" and self.backend == "triton" and self.part.ranks == 1
        return ready and self.cache_format.sparse is None and self.transformer.capturable

    @property
    def vocab_size(self) -> int:
        assert self.model.vocab_size is not None  # runnable_decoder has seen to it
        return self.model.vocab_size

    @property
    def num_threads(self) -> int:
        """Threads that torch computes with on the CPU."""
        return torch.get_num_threads()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers that this process holds, from the specs."""
        return sum(spec.page_bytes(self.config.block_size // self.part.token_shards) for spec in self.specs)

    def _require_room_for_weights(self) -> int:
        """Their bytes. Raises DeviceError where loading would exhaust the device's memory; an unknown size is 0."""
        params = count_params(self.own_model)
        if params is None:
            return 0
        needed = params.total * FLOAT_BYTES[self.dtype] * self.kernels.weight_copies(self.torch_dtype, self.device)
        if self.device.type == "cpu":
            needed *= self.part.ranks  # on one machine, as far as this process knows
        available = available_bytes(self.device)
        if needed > available:
            outside = params.embedding + params.head
            layers = int(self.model.num_layers * max(0.0, available * params.total / needed - outside) / params.total)
            raise DeviceError(
                f"{self.model.id} takes {format_bytes(needed)} to run here, but {self.device} has "
                f"{format_bytes(available)} free: {_smaller(layers, self.model.num_layers)}"
            )
        return needed

    def require_room(self, num_pages: int, *, beside_bytes: int = 0, beside: str = "the weights") -> None:
        """Raises KvtoolError for a pool without pages, DeviceError when the device has no memory for that many and
        `beside_bytes` that are still to come, of what `beside` says.
        """
        if num_pages < 1:
            raise KvtoolError(f"a pool of {num_pages} pages holds nothing: at least 1 is needed")
        needed, available = num_pages * self.page_bytes, available_bytes(self.device) - beside_bytes
        if needed > available:
            raise DeviceError(
                f"a pool of {num_pages:,} pages needs {format_bytes(needed)}, but {self.device} has "
                f"{format_bytes(max(0, available))} free{f' beside {beside}' if beside_bytes else ''}: "
                "ask for fewer or shorter requests"
            )

    def assumptions(self) -> list[str]:
        """What was not read or measured, in words."""
        found = [*self.model.assumed, *([self.fewer_threads] if self.fewer_threads else [])]
        decoder = runnable_decoder(self.model)
        if self.weights.even_routing:
            found.append(f"weights are random (seed {self.config.seed}): the tokens mean nothing, the work is the same")
            if self.model.moe is not None:
                found.append("experts are drawn evenly, because a router of random weights has learned nothing")
            if not decoder.exact:
                rotary = decoder.position_offset is None
                unread = "RoPE theta and norm epsilon are the defaults" if rotary else "norm epsilon is the default"
                found.append(f"{unread} of the {decoder.family} family: no effect on time")
        elif self.model.quantisation is not None:
            found.append(f"activations stay in {self.dtype}, also where the checkpoint would round them to fewer bits")
        if self.amax is not None:
            found.append(
                f"scales of the {self.cache_format.name} cache reach what {calibration_text(self)} showed first"
            )
        if self.kept.window is not None:
            found.append(
                "no prefix is cached: a streaming cache lets go of pages, and turns its sinks for each sequence"
            )
        if any(isinstance(layer.cache, SlidingAttention) for layer in self.model.layers):
            found.append("pages behind a sliding window stay allocated: the pool holds sliding layers as full ones")
        if self.model.num_layers != self.num_layers_of:
            found.append(f"only the first {self.model.num_layers} of {self.num_layers_of} layers ran (--num-layers)")
        return [*found, *self.notices.lines, *self.notices.remarks]


def _smaller(layers: int, of: int) -> str:
    """What would have room, where as many `layers` as that would."""
    if layers < 1:
        return "even one layer has no room, so take a smaller model"
    return f"run fewer layers, as --num-layers {min(layers, of - 1)}"
