from __future__ import annotations

import msgspec

from kvtool.compare.pairing import pair_cases
from tests.compare.example import document


def names(pairs: list) -> list[tuple[str, str]]:
    return [(a.name, b.name) for a, b in pairs]


def test_cases_pair_by_their_work_whatever_their_order() -> None:
    pairing = pair_cases(document(input_lens=(128, 512)).cases, document(input_lens=(512, 256, 128)).cases)
    assert names(pairing.pairs) == [("latency/128x2", "latency/128x2"), ("latency/512x2", "latency/512x2")]
    assert [case.name for case in pairing.only_b] == ["latency/256x2"]
    assert pairing.only_a == []
    assert pairing.differing == {}


def test_seeds_and_repeats_part_no_pair_but_are_reported() -> None:
    pairing = pair_cases(document(seed=0).cases, document(seed=7, iterations=3).cases)
    assert len(pairing.pairs) == 2
    assert pairing.differing == {"seed": (0, 7), "num_iters": (6, 3)}


def test_a_setting_that_is_compared_parts_no_pair() -> None:
    pairing = pair_cases(document(block_size=16).cases, document(block_size=64, model="other").cases)
    assert len(pairing.pairs) == 2
    assert pairing.differing == {"block_size": (16, 64), "model": ("m", "other")}


def test_a_setting_that_varies_within_a_document_must_agree() -> None:
    both = [*document(block_size=16).cases, *document(block_size=64).cases]
    pairing = pair_cases(both, document(block_size=64).cases)
    assert [a.inputs["block_size"] for a, _ in pairing.pairs] == [64, 64]
    assert [case.inputs["block_size"] for case in pairing.only_a] == [16, 16]


def test_other_work_never_pairs() -> None:
    assert pair_cases(document(input_lens=(128,)).cases, document(input_lens=(256,)).cases).pairs == []
    assert pair_cases(document(batch_size=1).cases, document(batch_size=8).cases).pairs == []


def test_repeated_cases_pair_in_their_order() -> None:
    twice = [*document(noise_seed=1).cases, *document(noise_seed=2).cases]
    pairing = pair_cases(twice, twice)
    assert all(a is b for a, b in pairing.pairs)
    assert len(pairing.pairs) == 4


def test_an_input_that_only_newer_documents_tell_is_no_difference() -> None:
    """Even where it varies within one of them."""
    older, newer = document(input_lens=(128, 512)).cases, document(input_lens=(128, 512)).cases
    newer = [
        msgspec.structs.replace(case, inputs=case.inputs | {"graphs": graphs})
        for case, graphs in zip(newer, (True, False), strict=True)
    ]
    for a, b in ((older, newer), (newer, older)):
        pairing = pair_cases(a, b)
        assert names(pairing.pairs) == [("latency/128x2", "latency/128x2"), ("latency/512x2", "latency/512x2")]
        assert pairing.differing == {}
