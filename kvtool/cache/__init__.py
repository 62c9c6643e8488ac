"""Which page holds which token: block pool, block tables, cached prefixes. Plain Python; knows no tensors."""

from kvtool.cache.block_pool import BlockPool
from kvtool.cache.block_table import BlockTable
from kvtool.cache.eviction.base import EvictionPolicy
from kvtool.cache.eviction.eviction import EVICTION, eviction_policy
from kvtool.cache.index.hashed import HashedIndex
from kvtool.cache.index.radix import RadixTree
from kvtool.cache.manager import CacheCounters, CacheManager, PageCopy, SequenceCache

__all__ = [
    "EVICTION",
    "BlockPool",
    "BlockTable",
    "CacheCounters",
    "CacheManager",
    "EvictionPolicy",
    "HashedIndex",
    "PageCopy",
    "RadixTree",
    "SequenceCache",
    "eviction_policy",
]
