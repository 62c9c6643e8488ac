"""One frozen spec per attention kind: what one rank stores for one layer of one sequence, and reads in a decode step.

Every spec answers the same questions. Bytes stored and bytes read are different things: a window reads less than the
sequence is long, a sparse layer reads its top-k of all it stores. Shapes come from `kvtool.sizing.layers`.
"""

from kvtool.sizing.specs.base import CacheSpec, SharedSpec
from kvtool.sizing.specs.heads import ChunkedSpec, CrossSpec, FullSpec, HeadsSpec, SlidingSpec, WindowSpec
from kvtool.sizing.specs.rows import CompressedSpec, IndexerSpec, LatentSpec, RowSpec, SharedRowSpec, SlidingRowSpec
from kvtool.sizing.specs.sparse import QuestSpec, StreamingSpec, sparse_spec
from kvtool.sizing.specs.state import CompressorSpec, ConstantSpec, StateSpec

__all__ = [
    "CacheSpec",
    "ChunkedSpec",
    "CompressedSpec",
    "CompressorSpec",
    "ConstantSpec",
    "CrossSpec",
    "FullSpec",
    "HeadsSpec",
    "IndexerSpec",
    "LatentSpec",
    "QuestSpec",
    "RowSpec",
    "SharedRowSpec",
    "SharedSpec",
    "SlidingRowSpec",
    "SlidingSpec",
    "StateSpec",
    "StreamingSpec",
    "WindowSpec",
    "sparse_spec",
]
