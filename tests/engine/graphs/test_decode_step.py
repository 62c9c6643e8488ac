"""A decode step as a function of device memory: it asks the device for nothing, and padding touches no page."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from kvtool.engine.graphs.decode_step import PADDING, DecodeRows, decode_rows, decode_step
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.sampler import Draw
from kvtool.kernels import load_kernels
from tests.engine.ask_nothing import AskNothing
from tests.engine.conftest import SaveTiny
from tests.engine.running import load, use
from tests.engine.tiny import CONFIGS, MAX_POSITIONS

NUM_PAGES, BLOCK_SIZE, NUM_ROWS = 12, 16, 5
DENSE = (
    "llama-3-gqa",
    "mistral-window",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3-longrope",
    "olmo2",
    "smollm3",
    "gpt2",
    "opt",
)


def live_rows() -> DecodeRows:
    """Three sequences, one at the first slot of a page, one at the last, and padding between and behind them."""
    rows = decode_rows(NUM_ROWS, MAX_POSITIONS, BLOCK_SIZE, torch.device("cpu"))
    rows.token_ids.copy_(torch.tensor([3, 9, 27, 81, 5]))
    rows.positions.copy_(torch.tensor([16, PADDING, 31, 0, PADDING]))
    rows.block_tables[:, :2] = torch.tensor([[4, 7], [1, 1], [9, 2], [5, 0], [3, 3]])
    rows.temperatures.copy_(torch.tensor([0.0, 1.0, 0.7, 1.3, 0.0]))
    rows.top_ps.copy_(torch.tensor([1.0, 1.0, 0.9, 1.0, 1.0]))
    return rows


def pool_of(loaded: LoadedModel) -> KvPool:
    """Random K and V in every slot."""
    pool = KvPool(loaded.specs, NUM_PAGES, BLOCK_SIZE, loaded.device)
    for layer in pool.layers:
        for tensor in layer.tensors:
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    return pool


def step(loaded: LoadedModel, pool: KvPool, rows: DecodeRows, draw: Draw, logits: Tensor | None = None) -> None:
    decode_step(loaded, pool, rows, draw, torch.Generator().manual_seed(0), logits)


def fake_step(loaded: LoadedModel, draw: Draw) -> None:
    """On tensors that have shapes and no values: whatever would ask for one raises, as a capture would."""
    pool, rows, logits = pool_of(loaded), live_rows(), torch.empty(NUM_ROWS, loaded.vocab_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        decode_step(loaded, pool, rows, draw, None, logits)  # fake numbers are drawn without a generator


def test_the_step_that_rows_are_at() -> None:
    rows = live_rows()
    batch = rows.next_batch(BLOCK_SIZE, AskNothing())
    assert batch.decode is not None
    assert batch.token_ids.tolist() == [3, 9, 27, 81, 5]
    assert batch.positions.tolist() == [16, 0, 31, 0, 0]
    assert batch.slots.tolist() == [7 * 16, -1, 2 * 16 + 15, 5 * 16, -1]
    assert batch.decode.seq_lens.tolist() == [17, 0, 32, 1, 0]
    assert rows.positions.tolist() == [17, PADDING, 32, 1, PADDING]


@pytest.mark.parametrize("name", ["llama-3-gqa", "deepseek-v2-lite", "gpt2", "mixtral"])
def test_padding_leaves_the_pool_as_it_is(tiny: SaveTiny, name: str) -> None:
    """Byte by byte: the slots of the three sequences are written, nothing else."""
    loaded = load(tiny(name).folder)
    pool, rows = pool_of(loaded), live_rows()
    before = [[tensor.clone() for tensor in layer.tensors] for layer in pool.layers]
    step(loaded, pool, rows, Draw.GREEDY)
    written = [(7, 0), (2, 15), (5, 0)]
    for layer, tensors in zip(pool.layers, before, strict=True):
        for now, then in zip(layer.tensors, tensors, strict=True):
            changed = (now != then).flatten(2).any(-1).nonzero().tolist()
            assert changed == sorted(map(list, written))
    rows.positions.fill_(PADDING)
    before = [[tensor.clone() for tensor in layer.tensors] for layer in pool.layers]
    step(loaded, pool, rows, Draw.GREEDY)
    for layer, tensors in zip(pool.layers, before, strict=True):
        assert all(torch.equal(now, then) for now, then in zip(layer.tensors, tensors, strict=True))


def test_what_padding_holds_changes_no_other_row(tiny: SaveTiny) -> None:
    loaded = load(tiny("llama-3-gqa").folder)
    found = []
    for token, page in ((0, 0), (130, 11)):
        rows, logits = live_rows(), torch.empty(NUM_ROWS, loaded.vocab_size)
        rows.token_ids[1], rows.block_tables[1, :] = token, page
        step(loaded, pool_of(loaded), rows, Draw.GREEDY, logits)
        found.append((logits[[0, 2, 3]], rows.token_ids[[0, 2, 3]]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_pages_past_a_sequence_are_not_looked_up(tiny: SaveTiny) -> None:
    loaded = load(tiny("llama-3-gqa").folder)
    rows, same = live_rows(), live_rows()
    rows.block_tables[:, 2:] = 2**31 - 1
    step(loaded, pool_of(loaded), rows, Draw.GREEDY)
    step(loaded, pool_of(loaded), same, Draw.GREEDY)
    assert torch.equal(rows.token_ids, same.token_ids)


@pytest.mark.parametrize("name", ["llama-3-gqa", "gemma2", "gpt2"])
def test_greedy_tokens_are_those_of_the_logits(tiny: SaveTiny, name: str) -> None:
    loaded = load(tiny(name).folder)
    use(loaded, load_kernels("reference"))
    rows, same, logits = live_rows(), live_rows(), torch.empty(NUM_ROWS, loaded.vocab_size)
    step(loaded, pool_of(loaded), rows, Draw.GREEDY)
    step(loaded, pool_of(loaded), same, Draw.GREEDY, logits)
    assert torch.equal(rows.token_ids, same.token_ids)
    assert torch.equal(rows.token_ids, logits.argmax(dim=-1))


@pytest.mark.parametrize("draw", list(Draw))
@pytest.mark.parametrize("name", [*DENSE, "deepseek-v2-yarn"])
def test_no_step_of_a_capturable_model_waits_for_the_device(tiny: SaveTiny, name: str, draw: Draw) -> None:
    loaded = load(tiny(name).folder, num_layers=1 if name.startswith("deepseek") else None)  # its dense layer
    expected, rows = live_rows(), live_rows()
    step(loaded, pool_of(loaded), expected, draw)
    use(loaded, AskNothing())
    assert loaded.transformer.capturable
    fake_step(loaded, draw)
    # On real values these kernels give the tokens that the others give: they stand for them.
    step(loaded, pool_of(loaded), rows, draw)
    assert rows.token_ids[[0, 2, 3]].tolist() == expected.token_ids[[0, 2, 3]].tolist()


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_that_take_turns_ask_the_device(tiny: SaveTiny, name: str) -> None:
    loaded = load(tiny(name).folder)
    use(loaded, AskNothing())
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        fake_step(loaded, Draw.GREEDY)


def test_every_model_has_experts_that_a_graph_can_hold(tiny: SaveTiny) -> None:
    assert {name for name in CONFIGS if not load(tiny(name).folder).transformer.capturable} == set()
