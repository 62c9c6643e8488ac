"""The accuracy part: what a smaller cache costs on a text, each format beside the run's own on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec

from kvtool.bench.accounting import step_bytes
from kvtool.bench.accuracy.greedy import agreements, continuations, continued
from kvtool.bench.accuracy.layers import LayerErrors, layer_errors, watch
from kvtool.bench.accuracy.methods import Method, calibrated, method, reference_method, spared
from kvtool.bench.accuracy.pays import has_answer, speed_of
from kvtool.bench.accuracy.reading import Read, read_windows
from kvtool.bench.accuracy.speed import PLANNED_TURNS, in_dtype_of_cache, timed
from kvtool.bench.accuracy.text import Text, read_text
from kvtool.bench.accuracy.tokens import COLLAPSES, LOSES, Moved, is_settled
from kvtool.bench.accuracy.words import accuracy_of, words_of
from kvtool.bench.cases.base import Measured, Setup, Stepped, require_positive
from kvtool.bench.session import Step
from kvtool.catalog.model import Model
from kvtool.engine.kept import reads_in_part
from kvtool.engine.text import find_tokenizer
from kvtool.machine.pace import Budget
from kvtool.results import AccuracyCase, CacheSpeed, Check, Memory, Metrics, Roofline, StepBytes
from kvtool.results.cases.accuracy import worst_layers
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.speed.traffic import decode_kv_read_bytes, kv_written_bytes
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.workloads import Request

FORMATS = (
    *("fp8", "fp8+calibrated", "fp8_e5m2", "int8", "int8_per_token_head"),
    *("int4", "int4+hadamard", "kivi_int4", "kivi_int2"),
    *("bf16+streaming:256", "bf16+quest:256"),
)
WATCHED_TOKENS = 256  # of the window that scales are calibrated on, and layers compared one by one
LEAST_TOKENS = 32  # of it, and of a window, however slow the machine is
FORMAT_S = 20.0  # that each format may take in all
# Of a comparison's time: for layers and greedy text one each, for steps and for the text two, and for the formats that
# lose, with their worst layers left whole, all that is left.
PARTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyPart(Stepped):
    """The formats, the text (None: the one that comes with kvtool), the windows it is read in, and the contexts that a
    decode step is timed at (none: nothing is timed). `skip_layers` makes a second case of each format, in which those
    layers keep the run's own; without any, a format that loses has one in which those do that are off most."""

    kv_cache_dtypes: tuple[str, ...]
    input_lens: tuple[int, ...]
    output_len: int = 32
    contexts: tuple[int, ...] = ()
    text: Path | None = None
    skip_layers: tuple[int, ...] = ()

    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens)
        require_positive("output length", self.output_len)
        require_positive("context", *self.contexts)
        if len(set(self.contexts)) == 1:
            raise KvtoolError(f"context {self.contexts[0]} is one point, and a line needs two: as 256,2k,8k")
        for name in self.kv_cache_dtypes:
            parse_cache_format(name)

    @classmethod
    def default(cls, *, gpu: bool) -> AccuracyPart:
        contexts = (1024, 8192, 32768) if gpu else (256, 2048, 8192)
        return cls(kv_cache_dtypes=FORMATS, input_lens=(512,), contexts=contexts)

    def fitted(self, model: Model, block_size: int, *, tiers: bool = False) -> AccuracyPart:
        """Contexts beyond the model's are left out, and all of them where a line through the rest has no two points;
        so are sparse caches that nobody asked for, where the model's attention cannot be sparse."""
        names = self.kv_cache_dtypes
        if names == FORMATS:
            names = tuple(name for name in names if reads_in_part(model, parse_cache_format(name)))
        longest = model.max_position_embeddings or max(self.contexts, default=0)
        known = tuple(sorted({context for context in self.contexts if context <= longest}))
        return replace(self, kv_cache_dtypes=names, contexts=known if len(known) > 1 else ())

    def ways(self, name: str) -> list[tuple[int, ...]]:
        """The layers that each case of a format leaves whole; one that lets go of pages does so in all of them."""
        return [(), self.skip_layers] if self.skip_layers and leaves_whole(name) else [()]

    @property
    def longest_tokens(self) -> int:
        return max(self.input_lens) + self.output_len

    @property
    def budget_s(self) -> float:
        return FORMAT_S * sum(len(self.ways(name)) for name in self.kv_cache_dtypes) * len(self.input_lens)

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        text = self._read(setup)
        for length in self.input_lens:
            yield Step(f"accuracy: windows of {length} tokens", Comparison(setup, self, text, length).measure)

    def _read(self, setup: Setup) -> Text:
        """The text by the tokenizer of the weights. Raises KvtoolError for random weights, and without a tokenizer."""
        loaded, weights = setup.loaded, setup.loaded.config.weights
        if weights == "random":
            raise KvtoolError(
                "random weights predict nothing that a cache could spoil: give --weights FOLDER or a .gguf"
            )
        tokenizer = find_tokenizer(weights)
        if tokenizer is None:
            raise KvtoolError(f"no tokenizer.json beside the weights ({weights}), which turns --text into tokens")
        return read_text(self.text, tokenizer, loaded.vocab_size)


def leaves_whole(name: str) -> bool:
    """Whether layers of the format `name` can be left whole: one that lets go of pages does so in all of them."""
    sparse = parse_cache_format(name).sparse
    return sparse is None or sparse.way != "streaming"


class Comparison:
    """All formats on the same windows of a text, until each verdict holds, the time is over, or the text is. Where time
    is short, each phase does less: fewer tokens, prompts and turns, with the same formats."""

    def __init__(self, setup: Setup, options: AccuracyPart, text: Text, input_len: int) -> None:
        self.setup, self.options, self.text, self.input_len = setup, options, text, input_len
        self.reference = reference_method(setup.loaded)
        self.methods = [
            method(setup.loaded, name, skip) for name in options.kv_cache_dtypes for skip in options.ways(name)
        ]
        self.token_s = 0.0  # of one token through the reference and every format
        self.trimmed: list[str] = []

    def measure(self) -> Measured:
        """The text comes last, since it can take whatever time is left."""
        budget = self.setup.budget.case(PARTS)
        windows = self.text.windows(self.input_len)
        apart = windows.pop() if len(windows) > 1 else windows[0]  # nothing is calibrated on what it is judged by
        errors = self._errors(apart[:WATCHED_TOKENS], budget.case())
        greedy = self._greedy(windows, budget.case())
        speeds = self._speeds(budget.case(shares=2))
        found = self._read_windows(windows, budget.case(shares=2))
        cases = [
            self._case(each, found[i], greedy[i], errors[i], speeds[i], self._unspared(each, found))
            for i, each in enumerate(self.methods)
        ]
        return Measured([*cases, *self._spared(windows, found, errors, budget)], [])

    def _errors(self, token_ids: list[int], budget: Budget) -> list[LayerErrors]:
        """By method, of as many of these tokens as there is time for, by the time that a few of them take."""
        least = min(LEAST_TOKENS, len(token_ids)) if budget.trims else len(token_ids)
        start_s = budget.clock()
        found = self._errors_on(token_ids[:least])
        tokens = int(min(len(token_ids), least * budget.times(budget.clock() - start_s)))
        self._leave_out("layers compared on {0} of {1} tokens", max(tokens, least), len(token_ids))
        return self._errors_on(token_ids[:tokens]) if tokens > least else found

    def _errors_on(self, token_ids: list[int]) -> list[LayerErrors]:
        """With scales that are calibrated on the same tokens."""
        seen = watch(self.reference, token_ids)
        self.methods = [
            calibrated(each, [layer.amax(rotated=each.cache_format.rotated) for layer in seen]) for each in self.methods
        ]
        return [layer_errors(each, seen) for each in self.methods]

    def _greedy(self, windows: list[list[int]], budget: Budget) -> list[list[int]]:
        """By method, for how many tokens the greedy text behind each prompt is the reference's: the first prompt, and
        as many more as there is time for by what that one took."""
        prompts = continuations(windows)
        start_s = budget.clock()
        found = self._agreements(self.methods, prompts[:1])
        more = int(min(len(prompts) - 1, budget.times(budget.clock() - start_s)))
        self._leave_out("greedy text of {0} of {1} prompts", 1 + more, len(prompts))
        further = self._agreements(self.methods, prompts[1 : 1 + more]) if more else [[] for _ in self.methods]
        return [first + rest for first, rest in zip(found, further, strict=True)]

    def _agreements(self, methods: list[Method], prompts: list[list[int]]) -> list[list[int]]:
        clock = self.setup.budget.clock
        expected = continued(self.setup.loaded, prompts, self.options.output_len)
        start_s = clock()
        found = [agreements(each, prompts, expected) for each in methods]
        tokens = sum(len(prompt) + self.options.output_len - 1 for prompt in prompts)
        self.token_s = (clock() - start_s) / tokens * (1 + 1 / len(methods))
        return found

    def _speeds(self, budget: Budget) -> list[CacheSpeed | None]:
        """By method; none where nothing is to be timed, or the model has no room beside itself in 16 bits."""
        contexts, reference = self.options.contexts, self.reference.cache_format.name
        if not contexts:
            return [None] * len(self.methods)
        try:
            loaded = in_dtype_of_cache(self.setup.loaded, max_positions=max(contexts))
        except DeviceError:
            return [None] * len(self.methods)
        methods = [each.of(loaded) for each in self.methods]
        longest = loaded.model.max_position_embeddings or max(contexts)
        answered = partial(has_answer, contexts=contexts, longest=longest)
        other, *own = timed([reference_method(loaded), *methods], contexts, budget, answered)
        unanswered = [len(each.itl_ms[0]) for each in own if not answered(each, other)]
        if budget.trims and unanswered:
            self._leave_out("steps timed in {0} of {1} turns", min(unanswered), PLANNED_TURNS)
        return [speed_of(each, other, contexts, dtype=reference, longest=longest) for each in own]

    def _read_windows(self, windows: list[list[int]], budget: Budget) -> list[Read]:
        """By method; the windows are shorter where not even one of them would be read."""
        longest = len(windows[0])
        most = int(min(longest, max(LEAST_TOKENS, budget.times(self.token_s))))
        self._leave_out("windows of {0} tokens in place of {1}", most, longest)
        shorter = [window[:most] for window in windows]
        found = read_windows(self.reference, self.methods, shorter, partial(self._goes_on, budget), budget.clock)
        self._note_unread([each.moved for each in found], sum(map(len, windows)))
        return found

    def _goes_on(self, budget: Budget, found: list[list[Moved]], took_s: float) -> bool:
        """Whether to read another window after those."""
        if not budget.trims:
            return len(found[0]) < self.setup.num_iters
        return budget.times(took_s) >= 1 and not self._are_settled(found)

    def _unspared(self, own: Method, found: list[Read]) -> list[Moved] | None:
        """What moved of the same format with no layer left whole; None of that itself."""
        if not own.whole_layers:
            return None
        plain = (own.cache_format, ())
        return next(
            r.moved for r, m in zip(found, self.methods, strict=True) if (m.cache_format, m.whole_layers) == plain
        )

    def _spared(
        self, windows: list[list[int]], found: list[Read], errors: list[LayerErrors], budget: Budget
    ) -> list[AccuracyCase]:
        """Each format that loses once more on the same tokens, with the layers whose attention is off most left whole:
        on as many of the windows as there is time for, and greedy text behind the first."""
        chosen = [i for i in range(len(found)) if self._is_to_spare(self.methods[i], found[i], errors[i])]
        if not chosen:
            return []
        layers = [sorted(worst_layers(errors[i].attention)) for i in chosen]
        methods = [spared(self.methods[i], tuple(whole)) for i, whole in zip(chosen, layers, strict=True)]
        greedy = self._agreements(methods, continuations(windows)[:1])
        same = [window[: len(each.nll) + 1] for window, each in zip(windows, found[0].moved, strict=False)]
        again = read_windows(self.reference, methods, same, lambda _, took_s: budget.times(took_s) >= 1, budget.clock)
        self._leave_out("layers left whole in {0} of {1} windows", len(again[0].moved), len(same))
        return [
            self._case(own, read, agrees, errors[i].sparing(own.whole_layers), None, found[i].moved)
            for i, own, read, agrees in zip(chosen, methods, again, greedy, strict=True)
        ]

    def _is_to_spare(self, own: Method, found: Read, errors: LayerErrors) -> bool:
        said = words_of(found.moved, self.reference.cache_format.name)
        can = not self.options.skip_layers and leaves_whole(own.cache_format.name)
        return said in (LOSES, COLLAPSES) and can and bool(worst_layers(errors.attention))

    def _are_settled(self, found: list[list[Moved]]) -> bool:
        return all(is_settled(words_of(each, self.reference.cache_format.name)) for each in found)

    def _note_unread(self, found: list[list[Moved]], tokens: int) -> None:
        """Where more text might have told more."""
        if self.setup.budget.trims and not self._are_settled(found):
            self._leave_out("{0:,} of {1:,} tokens of text read", sum(len(each.nll) + 1 for each in found[0]), tokens)

    def _leave_out(self, words: str, done: int, asked: int) -> None:
        if done < asked:
            self.trimmed.append(words.format(done, asked))

    def _case(
        self,
        own: Method,
        read: Read,
        greedy: list[int],
        errors: LayerErrors,
        speed: CacheSpeed | None,
        unspared: list[Moved] | None,
    ) -> AccuracyCase:
        """The case of one method. Layers that the run chose itself are not in its name: runs can be compared."""
        found = read.moved
        first = len(found[0].nll) + 1
        whole = own.whole if self.options.skip_layers else "worst layers whole"
        name = f"accuracy/{own.cache_format.name}" + (f"/{whole}" if own.whole_layers else "")
        return AccuracyCase(
            name=name if len(self.options.input_lens) == 1 else f"{name}/{self.input_len}",
            inputs=self.setup.inputs(
                kv_cache_dtype=own.cache_format.name,
                skip_layers=",".join(map(str, own.whole_layers)) or None,
                input_len=self.input_len,
                output_len=self.options.output_len,
                num_iters_warmup=0,
                graphs=False,
            ),
            samples=[],
            metrics=Metrics.none(),
            bytes=self._bytes(own),
            roofline=Roofline(reason="nothing is timed"),
            memory=Memory(
                kv_predicted_bytes=own.predicted_bytes(first),
                kv_allocated_bytes=read.held,
                kv_pool_bytes=None,
                kv_waste_bytes=read.held - sum(spec.stored_bytes(first) for spec in own.specs),
                peak_bytes=None,
            ),
            check=Check(text=f"compared with {self.reference.cache_format.name}: the case's own figures"),
            accuracy=accuracy_of(
                own,
                self.reference,
                found,
                greedy,
                errors,
                greedy_tokens=self.options.output_len,
                sha256=self.text.sha256,
                speed=speed,
                trimmed=self.trimmed,
                unspared=unspared,
            ),
        )

    def _bytes(self, own: Method) -> StepBytes:
        """Of the decode step behind a whole window, by the format's own specs."""
        request = Request(prompt_ids=(0,) * self.input_len, output_len=2)
        bytes_ = step_bytes(self.setup.loaded, [request])
        return msgspec.structs.replace(
            bytes_,
            kv_read=decode_kv_read_bytes(own.specs, [self.input_len + 1]),
            kv_written=kv_written_bytes(own.specs, 1),
        )
