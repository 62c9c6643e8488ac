"""Policies whose rank changes as pages go, so that the tests hold the interface to more than what kvtool ships."""

from __future__ import annotations

from kvtool.cache.eviction.base import Ranked
from kvtool.cache.index.node import Node


class DeepestPage(Ranked):
    """The page farthest from the start of its prefix goes first."""

    by_run = False

    def rank(self, node: Node) -> int:
        return -node.depth_pages


class LargestRun(Ranked):
    """The longest run goes first."""

    def rank(self, node: Node) -> int:
        return -len(node.pages)
