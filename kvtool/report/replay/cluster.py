"""A cluster: the modes side by side, and every link."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvtool.report.files import CsvValue
from kvtool.report.replay.rows import flat_times
from kvtool.report.tables import Table
from kvtool.results import ReplayCluster, ReplayDocument
from kvtool.units import format_ms


def cluster_tables(document: ReplayDocument) -> list[Table]:
    """Modes and links; none without a cluster."""
    cluster = document.cluster
    if cluster is None:
        return []
    return [*([_split_table(cluster)] if cluster.splits else []), _mode_table(cluster), _link_table(cluster)]


def cluster_sentences(document: ReplayDocument) -> Iterator[str]:
    """The range of nodes, what holds the cluster back, and what the second way in gives."""
    cluster = document.cluster
    if cluster is None:
        return
    if cluster.splits:
        yield (
            f"Of {len(cluster.splits)} splits {cluster.prefill} prefill and {cluster.decode} decode nodes are the "
            f"best: {max(split.agents_per_s for split in cluster.splits):.3g} agents a second, {cluster.mode}."
        )
    low, high = cluster.range
    ratio = cluster.prefill / cluster.decode
    end = "no end" if high is None else f"{high:.3g}"
    within = "within" if cluster.bound == "storage" else "not within"
    held = "storage alone is the limit" if cluster.bound == "storage" else f"{cluster.bound} is full before storage is"
    yield (
        f"{cluster.prefill} prefill to {cluster.decode} decode nodes are {ratio:.3g}, {within} {low:.3g} to {end}: "
        f"{held}."
    )
    times = {mode.mode: mode.makespan_s for mode in cluster.modes}
    if times["dualpath"]:
        most = (cluster.prefill + cluster.decode) / cluster.prefill
        yield (
            f"Reading on both sides is {times['basic'] / times['dualpath']:.2f} times as fast as on the prefill side "
            f"alone; storage allows {most:.3g} at most, and loads in no time "
            f"{times['basic'] / (times['oracle'] or times['dualpath']):.2f}."
        )


def mode_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a mode; times have a column a percentile."""
    return [flat_times(mode) for mode in (document.cluster.modes if document.cluster else [])]


def link_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a mode and link."""
    return [
        {"mode": mode.mode, **msgspec.structs.asdict(link)}
        for mode in (document.cluster.modes if document.cluster else [])
        for link in mode.links
    ]


def split_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a split of the GPUs."""
    return [msgspec.structs.asdict(split) for split in (document.cluster.splits if document.cluster else [])]


def _split_table(cluster: ReplayCluster) -> Table:
    return Table(
        title="Prefill and decode nodes",
        columns=("prefill", "decode", "agents\n/ s", "full first"),
        rows=[
            (str(split.prefill), str(split.decode), f"{split.agents_per_s:.3f}", split.bound)
            for split in cluster.splits
        ],
        labels=2,
    )


def _nodes(cluster: ReplayCluster) -> str:
    """With their cards, and the layout where it is more than tensor parallel."""
    degrees = ", ".join(f"{name} {count}" for name, count in cluster.layout.items() if count > 1 and name != "gpus")
    one = f" on {cluster.prefill_gpu}, {degrees}"
    two = f", of {cluster.prefill_gpu} and {cluster.decode_gpu}, {degrees}"
    return f"{cluster.prefill} prefill and {cluster.decode} decode nodes" + (
        one if cluster.prefill_gpu == cluster.decode_gpu else two
    )


def _mode_table(cluster: ReplayCluster) -> Table:
    return Table(
        title=_nodes(cluster),
        columns=("mode", "agents\n/ s", "all done\ns", "a session\ns", "TTFT ms\nmean", "TTFT ms\np99", "TPOT ms\nmean",
                 "storage NIC\nmax / mean"),
        rows=[
            (
                mode.mode,
                f"{mode.agents_per_s:.3f}",
                f"{mode.makespan_s:,.1f}",
                f"{mode.session_s:,.1f}",
                format_ms(mode.ttft_ms.mean),
                format_ms(mode.ttft_ms.p99),
                format_ms(mode.tpot_ms.mean),
                "-" if mode.storage_max_over_mean is None else f"{mode.storage_max_over_mean:.2f}",
            )
            for mode in cluster.modes
        ],
        labels=1,
    )  # fmt: skip


def _link_table(cluster: ReplayCluster) -> Table:
    """Utilisation in percent: with all storage NICs full, then as each mode ran."""
    loads = {one.link: one.utilisation for one in cluster.loads}
    used = [{one.link: one.utilisation for one in mode.links} for mode in cluster.modes]
    return Table(
        title="Links, % of their bandwidth",
        columns=("link", "storage\nfull", *(mode.mode for mode in cluster.modes)),
        rows=[
            (name, f"{100 * load:.1f}", *(f"{100 * links[name]:.1f}" for links in used)) for name, load in loads.items()
        ],
        labels=1,
    )
