"""Which page holds which token: block pool, block tables, cached prefixes. Plain Python; knows no tensors."""

from kvtool.cache.block_pool import BlockPool
from kvtool.cache.block_table import BlockTable
from kvtool.cache.eviction import EVICTION, EvictionPolicy, eviction_policy
from kvtool.cache.manager import CacheCounters, CacheManager, PageCopy, SequenceCache
from kvtool.cache.radix_tree import RadixTree

__all__ = [
    "EVICTION",
    "BlockPool",
    "BlockTable",
    "CacheCounters",
    "CacheManager",
    "EvictionPolicy",
    "PageCopy",
    "RadixTree",
    "SequenceCache",
    "eviction_policy",
]
