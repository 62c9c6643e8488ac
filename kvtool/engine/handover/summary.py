"""What a run handed over, as a document tells it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kvtool.engine.handover.fit import Transfer, fitted
from kvtool.engine.handover.messages import Served
from kvtool.engine.handover.options import Disaggregation
from kvtool.results import Handover, Sample, summarise


def handover_of(served: Sequence[Served], asked: Disaggregation) -> Handover:
    """All hand-overs of a run, and the fit of what they took."""
    transfers = transfers_of(served)
    fit = fitted(transfers)
    return Handover(
        prefill=asked.prefill,
        decode=asked.decode,
        prefill_tp=asked.prefill_tp,
        decode_tp=asked.decode_tp,
        transfer=asked.transfer,
        by=asked.by,
        requests=len(transfers),
        pages_sent=sum(one.sent.pages for one in served if one.sent is not None),
        pages_spared=sum(one.spared_pages for one in served),
        bytes=sum(transfer.bytes for transfer in transfers),
        descriptors=sum(transfer.descriptors for transfer in transfers),
        transfer_ms=summarise([transfer.seconds * 1e3 for transfer in transfers]),
        exposed_ms=summarise([transfer.exposed_s * 1e3 for transfer in transfers]),
        alpha_us=None if fit.alpha_s is None else fit.alpha_s * 1e6,
        gbps=None if fit.bytes_per_s is None else fit.bytes_per_s / 1e9,
    )


def transfers_of(served: Sequence[Served]) -> list[Transfer]:
    """The hand-overs that there were, timed from the first byte that was copied to the last that arrived."""
    found = []
    for one in served:
        sent = one.sent
        if sent is None or one.arrived_s is None or sent.export_start_s is None:
            continue
        computed_s = sent.times_s[0]
        found.append(
            Transfer(
                descriptors=sent.descriptors,
                bytes=sent.bytes,
                seconds=one.arrived_s - sent.export_start_s,
                exposed_s=max(0.0, one.arrived_s - max(computed_s, sent.export_start_s)),
            )
        )
    return found


def sample_of_served(one: Served, *, arm: str, iteration: int) -> Sample:
    """The sample of a request that is over."""
    start_s, times_s = one.ask.arrival_s, one.times_s
    return Sample(
        arm=arm,
        iteration=iteration,
        ttft_s=times_s[0] - start_s,
        e2e_s=times_s[-1] - start_s,
        itl_s=[b - a for a, b in pairwise(times_s)],
        output_tokens=len(one.tokens),
        prompt_tokens=len(one.ask.prompt),
        cached_tokens=one.cached_tokens,
    )
