"""A decode step that is recorded once and replayed, as a CUDA graph is, gives what the plain engine gives."""

from __future__ import annotations

import pytest

from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.interface import Kernels
from tests.engine.ask_nothing import AskNothing
from tests.engine.conftest import SaveTiny
from tests.engine.recording import recorded
from tests.engine.requests import Request, run
from tests.engine.running import engine_of, load, prompt, use


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder)


class DecodesAskNothing(AskNothing):
    """Prefill, which runs as ever, by other kernels."""

    def __init__(self, prefills: Kernels) -> None:
        self.prefill, self.gather = prefills.prefill, prefills.gather


CAPTURABLE = ("llama-3-gqa", "mistral-window", "qwen3", "gemma2", "gemma3", "phi3-longrope", "olmo2", "smollm3", "gpt2")


@pytest.mark.parametrize("name", [*CAPTURABLE, "deepseek-v2-yarn"])
def test_nothing_that_varies_is_baked_into_a_recorded_step(tiny: SaveTiny, name: str) -> None:
    """Steps are recorded over padding, and replayed at every length, across pages, in every row."""
    loaded = load(tiny(name).folder, num_layers=1 if name.startswith("deepseek") else None)  # its dense layer
    requests = [Request(prompt(21), 20), Request(prompt(3), 9), Request(prompt(30), 14), Request(prompt(15), 3)]
    expected = run(engine_of(loaded), requests)
    assert loaded.transformer.capturable
    use(loaded, DecodesAskNothing(loaded.kernels))
    found = run(engine_of(loaded, capture=recorded), requests)
    assert [s.output_ids for s in found] == [s.output_ids for s in expected]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_recorded_step_draws_anew_each_time(loaded: LoadedModel, top_p: float) -> None:
    kernels, outputs = loaded.kernels, []
    for capture in (None, recorded):
        engine = engine_of(loaded, seed=3, capture=capture)
        params = SamplingParams(max_tokens=15, temperature=1.2, top_p=top_p)
        sequences = [engine.add(prompt(5 + index), params) for index in range(4)]
        list(engine.run_until_idle())
        outputs.append([s.output_ids for s in sequences])
        use(loaded, DecodesAskNothing(kernels))
    use(loaded, kernels)
    assert outputs[0] == outputs[1]


def test_a_step_that_asks_the_device_cannot_be_recorded(tiny: SaveTiny) -> None:
    """The experts that were chosen while it was recorded stay chosen, where they take turns."""
    loaded = load(tiny("mixtral").folder)
    requests = [Request(prompt(21), 20), Request(prompt(3), 9)]
    expected = run(engine_of(loaded), requests)
    use(loaded, DecodesAskNothing(loaded.kernels))
    found = run(engine_of(loaded, capture=recorded), requests)
    assert [s.output_ids for s in found] != [s.output_ids for s in expected]
