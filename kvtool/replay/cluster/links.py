"""The links that a cached prefix crosses on each of its two ways, and what they come to when storage is the limit.

A node has a storage NIC (snic), host memory (dram, one limit for both directions), and a NIC a GPU, which also moves
bytes between host memory and GPU: read towards the NIC (cnic read), write from it (cnic write).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from kvtool.replay.cluster.options import Cluster

Crossing = tuple[str, str]  # which node (prefill or decode) and which of its links
LEFT_TO_CACHE = Fraction(1, 100)  # of a NIC, by the weights of its virtual lanes
KINDS = ("snic", "dram", "cnic read", "cnic write")
READ: dict[str, tuple[Crossing, ...]] = {
    "prefill": (("prefill", "snic"), ("prefill", "dram")),
    "decode": (("decode", "snic"), ("decode", "dram")),
}  # storage into the host memory of the node that reads, for a prefix that is read on either side
TO_PREFILL: dict[str, tuple[Crossing, ...]] = {
    "prefill": (("prefill", "dram"), ("prefill", "cnic read"), ("prefill", "cnic write")),
    "decode": (("decode", "dram"), ("decode", "cnic read"), ("prefill", "cnic write")),
}  # from there into the GPUs that prefill, layer by layer
TO_DECODE: tuple[Crossing, ...] = (("prefill", "cnic read"), ("decode", "cnic write"), ("decode", "dram"))
INTO_DECODE: tuple[Crossing, ...] = (("decode", "dram"), ("decode", "cnic read"), ("decode", "cnic write"))


def crossed(side: str) -> tuple[Crossing, ...]:
    """All that the bytes of a hit cross when `side` reads them. What the decode node read is there already."""
    handed_over = TO_DECODE if side == "prefill" else ()
    return (*READ[side], *TO_PREFILL[side], *handed_over, *INTO_DECODE)


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """GB/s through a link of one node when all storage NICs read at their limit, and the link's own limit."""

    node: str
    link: str
    gbps: Fraction
    limit_gbps: Fraction

    @property
    def utilisation(self) -> Fraction:
        return self.gbps / self.limit_gbps


def limits(cluster: Cluster) -> dict[str, Fraction]:
    """GB/s of each link of a node; those of the GPUs' NICs together, less what the model's own traffic takes."""
    nics = cluster.nic_gbps * cluster.gpus * max(LEFT_TO_CACHE, 1 - cluster.reserved)
    return {"snic": cluster.storage_gbps, "dram": cluster.dram_gbps, "cnic read": nics, "cnic write": nics}


def link_loads(cluster: Cluster) -> list[LinkLoad]:
    """Each link of a prefill and of a decode node, with load balanced over the nodes of a kind."""
    nodes = {"prefill": cluster.prefill, "decode": cluster.decode}
    known = limits(cluster)
    loads = {(node, link): Fraction(0) for node in nodes for link in KINDS}
    for side, readers in nodes.items():
        for node, link in crossed(side):
            loads[node, link] += cluster.storage_gbps * readers / nodes[node]
    return [LinkLoad(node, link, gbps, known[link]) for (node, link), gbps in loads.items()]


def balanced_range(cluster: Cluster) -> tuple[Fraction, Fraction | None]:
    """The prefill nodes for each decode node between which no link but the storage NICs is full; None: no end.

    A link's load is a + b x its own ratio of nodes (the other kind over its own), with a and b from its crossings.
    """
    known, storage = limits(cluster), cluster.storage_gbps
    low, high = Fraction(0), None
    for node, other in (("prefill", "decode"), ("decode", "prefill")):
        for link in KINDS:
            own = crossed(node).count((node, link))
            others = crossed(other).count((node, link))
            if not others:
                if own * storage > known[link]:
                    return Fraction(1), Fraction(0)  # full at any ratio
                continue
            most = (known[link] / storage - own) / others
            if node == "decode":
                high = most if high is None else min(high, most)
            else:
                low = max(low, 1 / most) if most > 0 else Fraction(10**9)
    return low, high
