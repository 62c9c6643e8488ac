"""`kvtool generate`: text from a model, with what it took."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.layout import Ranks
from kvtool.cli.flags.output import ModelsOption, Printed
from kvtool.cli.flags.run import Run, Sampling
from kvtool.cli.flags.tiers import Tiers
from kvtool.system.errors import KvtoolError
from kvtool.units import format_bytes, format_ms, split_list

if TYPE_CHECKING:
    from kvtool.engine.generate import OnToken
    from kvtool.engine.text import Tokenizer
    from kvtool.results import GenerateDocument, Handover

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool generate smollm2-135m --prompt-ids 1,2,3 --output-len 8\n\n"
    "  kvtool generate smollm2-135m --prompt-ids 5,6 --prompt-ids 5,7 --show-cache"
)


@grouped
def generate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, or a folder or .gguf with weights.")
    ] = None,
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to go on from; may be given again. Needs a tokenizer.json.")
    ] = None,
    prompt_ids: Annotated[
        list[str] | None, typer.Option(metavar="LIST", help="Token ids instead of text, as 1,2,3; may be given again.")
    ] = None,
    show_cache: Annotated[
        bool,
        typer.Option(
            "--show-cache", help="Run prompts one after the other, and draw the tree of the pages they share."
        ),
    ] = False,
    sampling: Sampling,
    run: Run,
    ranks: Ranks,
    tiers: Tiers,
    models: ModelsOption = None,
    output: Printed,
) -> None:
    """Generate from MODEL with a paged KV cache, and say how long it took and how many pages it held."""
    if bool(prompt) == bool(prompt_ids):
        raise KvtoolError("give --prompt TEXT or --prompt-ids 1,2,3 (one of the two)")
    ids = [_token_ids(text) for text in prompt_ids or []]
    below, layout, apart = tiers.options(), ranks.layout(), ranks.disaggregation()
    if apart is not None and (layout.ranks > 1 or show_cache or below is not None):
        raise KvtoolError("--disaggregate runs without --tp, --show-cache and --tiers: it takes prefill-tp, decode-tp")
    chosen = run.model(model, models)
    load = run.begin()

    from kvtool.engine.generate import generate as run_generate
    from kvtool.engine.text import find_tokenizer
    from kvtool.machine.device import resolve_device
    from kvtool.machine.environment import describe_environment

    config = run.config(model, other_cores=load.other_cores(), tiers=below)
    tokenizer = find_tokenizer(config.weights, needed=bool(prompt))
    if prompt:
        ids = _encoded(prompt, tokenizer, config.weights)
    streams = not output.json and len(ids) == 1
    document = run_generate(
        chosen,
        config,
        ids,
        sampling.params(),
        tokenizer=tokenizer,
        on_token=_printer(tokenizer) if streams else lambda index, token: None,
        environment=describe_environment(str(resolve_device(run.device))),
        in_turns=show_cache,
        layout=layout,
        apart=apart,
    )
    answer(
        document, output, show=lambda document, console: _print_rest(document, streamed=streams, show_cache=show_cache)
    )


def _encoded(prompts: list[str], tokenizer: Tokenizer | None, weights: str) -> list[list[int]]:
    if tokenizer is None:
        raise KvtoolError(f"no tokenizer.json beside the weights ({weights}): use --prompt-ids 1,2,3")
    return [tokenizer.encode(text) for text in prompts]


def _token_ids(text: str) -> list[int]:
    try:
        return [int(item) for item in split_list(text)]
    except ValueError:
        raise KvtoolError(f"--prompt-ids {text[:40]!r} is not a list of token ids: write 1,2,3") from None


def _printer(tokenizer: Tokenizer | None) -> OnToken:
    """Writes each token to standard output as it comes: text, or ids where there is no tokenizer."""
    from kvtool.engine.text import TextStream

    stream = TextStream(tokenizer) if tokenizer else None

    def show(index: int, token: int) -> None:
        sys.stdout.write(stream.push(token) if stream else f"{token} ")
        sys.stdout.flush()

    return show


def _print_rest(document: GenerateDocument, *, streamed: bool, show_cache: bool) -> None:
    from kvtool.report.cached import cache_lines

    for sequence in document.sequences:
        if not streamed:
            typer.echo(sequence.text if sequence.text is not None else " ".join(map(str, sequence.output_ids)))
        if streamed:
            typer.echo()
        typer.echo(
            f"[{sequence.prompt_tokens} prompt + {len(sequence.output_ids)} output tokens, "
            f"TTFT {format_ms(sequence.ttft_ms)} ms, TPOT {format_ms(sequence.tpot_ms)} ms, {sequence.pages} pages "
            f"of {document.inputs['block_size']}]"
        )
    for tier in document.tiers:
        typer.echo(
            f"[{tier.tier}: {tier.hit_tokens:,} tokens found, {format_bytes(tier.bytes_out)} read, "
            f"{format_bytes(tier.bytes_in)} written]"
        )
    for rank in document.ranks:
        typer.echo(
            f"[rank {rank.rank} of {len(document.ranks)}: weights {format_bytes(rank.weights_allocated_bytes)}, pages "
            f"{format_bytes(rank.kv_allocated_bytes)}, sent {format_bytes(rank.sent_bytes)}, waited "
            f"{format_ms(rank.exposed_s * 1e3)} ms]"
        )
    if document.handover is not None:
        typer.echo(_handed_over(document.handover))
    for line in cache_lines(document) if show_cache else ():
        typer.echo(line)
    for assumption in document.assumptions:
        typer.echo(f"assumed: {assumption.removeprefix('assumed: ')}", err=True)


def _handed_over(told: Handover) -> str:
    waited = format_ms(None if told.exposed_ms is None else told.exposed_ms.p50)
    return (
        f"[{told.pages_sent:,} pages handed over, {format_bytes(told.bytes)}, {told.pages_spared:,} spared; answers "
        f"waited {waited} ms for them]"
    )
