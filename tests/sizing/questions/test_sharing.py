from __future__ import annotations

import pytest

from kvtool.results import SizeSharing
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from tests.sizing.example import LLAMA_8B, QWEN3_NEXT, SLIDING


def shared(model: object = LLAMA_8B, **options: object) -> SizeSharing | None:
    return size(model, options=SizeOptions(**options)).rows[0].sharing  # type: ignore[arg-type]


def test_ranking_fifty_items_for_one_user() -> None:
    """KV_user + N x KV_item against N x (KV_user + KV_item): 4,096 and 128 tokens of 131,072 B, N = 50."""
    user, item = 4096 * 131_072, 128 * 131_072
    saved = shared(contexts=(4096 + 128,), batch_sizes=(50,), shared_prefix=4096)
    assert saved is not None
    assert saved.shared_bytes == user + 50 * item == 1_375_731_712
    assert saved.unshared_bytes == 50 * (user + item) == 27_682_406_400
    assert saved.saved_bytes == 49 * user
    assert saved.ratio == pytest.approx(20.12, abs=0.01)
    assert saved.words == "shared 1.28 GiB, unshared 25.78 GiB: saved 24.50 GiB (20.1 x)"


def test_only_whole_pages_are_shared() -> None:
    saved = shared(contexts=(100,), batch_sizes=(2,), shared_prefix=40)
    assert saved is not None
    assert saved.saved_bytes == 32 * 131_072


def test_recurrent_state_is_every_sequences_own() -> None:
    saved = shared(QWEN3_NEXT, contexts=(1024,), batch_sizes=(3,), shared_prefix=512)
    assert saved is not None
    assert saved.saved_bytes == 2 * 512 * 24_576


def test_a_window_that_has_left_the_prefix_shares_nothing() -> None:
    saved = shared(SLIDING, contexts=(4096,), batch_sizes=(2,), shared_prefix=1024)
    assert saved is not None
    assert saved.saved_bytes == 1024 * 4 * 4096  # of the full layers alone


def test_it_counts_one_copy_whatever_the_layout() -> None:
    options = {"contexts": (4096,), "batch_sizes": (4,), "shared_prefix": 2048}
    assert shared(**options) == shared(**options, parallel=Parallel(tp=4))


def test_no_prefix_no_answer() -> None:
    assert shared(contexts=(4096,), batch_sizes=(4,)) is None
