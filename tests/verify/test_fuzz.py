"""Any damage to a log ends in a document or in one line of error."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.results import encode
from kvtool.system.errors import KvtoolError
from tests.verify.helpers import LOGS, from_text, held

WHOLE = sorted(path.name for path in LOGS.iterdir() if path.suffix in (".log", ".txt"))
MODELS = ("llama-3.1-8b", "gpt-oss-120b", "qwen/qwen3-235b-a22b", "qwen3.5-9b", None)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(WHOLE), st.sampled_from(MODELS), st.data())
def test_a_damaged_log_never_breaks_the_comparison(name: str, model: str | None, data: st.DataObject) -> None:
    text = (LOGS / name).read_text()
    for _ in range(data.draw(st.integers(0, 4))):
        spot = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 30))
        junk = data.draw(st.sampled_from(["", "\n", "0", "9" * 30, "-", ".", "'", "}", "1e308", "None", "\x00", "TP1"]))
        text = text[:spot] + junk + text[spot + cut :]
    try:
        document = held(from_text(text), model)
    except KvtoolError as error:
        refused = str(error)
    else:
        refused = ""
        encode(document)
        assert document.verdict in ("agrees", "off", "refused", "uncompared")
    assert "\n" not in refused
