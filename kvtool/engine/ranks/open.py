"""A model loaded on a layout: in this process, on ranks that are started here, or on those that torchrun started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig, truncated
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.ranks.sharded import OneRank
from kvtool.engine.ranks.worker import Job, work
from kvtool.machine.device import resolve_device
from kvtool.machine.ranks.crew import Crew, join_torchrun, torchrun_ranks
from kvtool.machine.ranks.layout import RankLayout, check_ranks
from kvtool.system.errors import KvtoolError


@contextmanager
def loaded_on(
    layout: RankLayout,
    model: Model,
    config: EngineConfig,
    *,
    max_positions: int,
    num_pages: int,
    crew: Crew | None = None,
) -> Iterator[LoadedModel]:
    """`config` is what `ranked_config` made of it. A `crew` that is there already is used, else one is started and
    ended, or that of torchrun is joined: there, processes other than the first compute inside and then exit.
    Raises KvtoolError or DeviceError."""
    if layout.ranks == 1:
        yield LoadedModel(model, config, max_positions=max_positions, num_pages=num_pages, part=OneRank())
        return
    device_type = _checked(layout, model, config)
    job = Job(model, config, max_positions, num_pages)
    if crew is not None:
        yield from _led(crew, layout, device_type, job)
    elif torchrun_ranks() is not None:
        yield from _joined(layout, device_type, job)
    else:
        crew = Crew(layout.ranks, work)
        try:
            yield from _led(crew, layout, device_type, job)
        finally:
            crew.close()


def _checked(layout: RankLayout, model: Model, config: EngineConfig) -> str:
    """The kind of device, which is there for each rank."""
    check_ranks(truncated(model, config.num_layers), layout)
    kind = resolve_device(config.device).type
    if kind == "cuda" and torchrun_ranks() is None and layout.ranks > torch.cuda.device_count():
        raise KvtoolError(
            f"{layout} is {layout.ranks} ranks of a GPU each, but torch sees {torch.cuda.device_count()}: --device cpu "
            "runs them on the processor"
        )
    return kind


def _led(crew: Crew, layout: RankLayout, device_type: str, job: Job) -> Iterator[LoadedModel]:
    seat = crew.seat(layout, device_type, job)
    with crew.guarded():
        loaded = RankedModel(job, seat, crew)
    try:
        yield loaded
    finally:
        if not crew.is_lost:
            loaded.close()


def _joined(layout: RankLayout, device_type: str, job: Job) -> Iterator[LoadedModel]:
    seat = join_torchrun(layout, device_type)
    if not seat.leads:
        work(seat, job)
        raise SystemExit(0)
    loaded = RankedModel(job, seat)
    yield loaded
    loaded.close()
