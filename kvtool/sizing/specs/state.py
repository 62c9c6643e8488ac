"""The same bytes however long the sequence is: recurrent state, convolutions, compressors."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.sizing.specs.base import CacheSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSpec(CacheSpec):
    """The same bytes however long the sequence is."""

    kind = "state"
    per_token = False

    @property
    def state_bytes(self) -> int:
        raise NotImplementedError

    def stored_tokens(self, tokens: int) -> int:
        return 0

    def stored_bytes(self, tokens: int) -> int:
        return self.state_bytes

    def read_bytes(self, tokens: int) -> int:
        """The whole state, read and written back."""
        return 2 * self.state_bytes

    def allocated_bytes(self, tokens: int, block_size: int) -> int:
        return self.state_bytes

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """None: the state after a prefix is overwritten by what follows it, so each sequence has its own."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec(ConstantSpec):
    """Recurrent and convolution state: every step reads and rewrites it. A sequence has `slots` of them: its own, and
    one for each drafted token, which may be the last that is accepted.
    """

    conv_elements: int
    recurrent_elements: int
    conv_element_bytes: int
    recurrent_element_bytes: int
    slots: int = 1

    @property
    def slot_bytes(self) -> int:
        return self.conv_elements * self.conv_element_bytes + self.recurrent_elements * self.recurrent_element_bytes

    @property
    def state_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def read_bytes(self, tokens: int) -> int:
        """One state read, all of them written."""
        return (1 + self.slots) * self.slot_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorSpec(ConstantSpec):
    """What a compressor of DeepSeek-V4 still needs: values and scores, in fp32, of the newest `window` tokens, two
    groups of 4 that overlap or one of 128.
    """

    vector_dim: int
    ratio: int
    window: int

    @property
    def state_bytes(self) -> int:
        return 4 * self.vector_dim * self.window

    def read_bytes(self, tokens: int) -> int:
        """On average: a step writes one vector, and each whole group reads the window."""
        return 4 * self.vector_dim * (1 + self.window // self.ratio)
