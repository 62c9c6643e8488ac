"""A server that runs, by its URL: how it is opened, and how `kvtool bench` asks it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.bench import BenchGrid
from kvtool.cli.flags.group import Group
from kvtool.cli.flags.run import Run
from kvtool.cli.flags.workload import WorkloadFlags
from kvtool.cli.values import length_list, optional_length, share_list
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.bench.engines.server.measure import Target
    from kvtool.bench.engines.server.options import ServerOptions
    from kvtool.catalog.model import Model
    from kvtool.engine.endpoint.client import Client
    from kvtool.engine.endpoint.server import Server
    from kvtool.engine.endpoint.wire import Wire
    from kvtool.verify.facts import LogFacts

_option = partial(typer.Option, rich_help_panel="A server that already runs")
OWN = "kvtool"  # the peer that a server may have
OF_A_SERVER = frozenset(  # of the options of `bench`, those that say something of a server too
    {"input_len", "output_len", "num_iters", "num_iters_warmup", "prefix_len", "hit_rate", "concurrency"}
    | {"request_rate", "burstiness", "num_prompts", "peers", "workload", "think_time", "time_scale", "goodput"}
    | {"seed", "block_size", "model", "models", "json", "format", "out"}
)


@dataclass(frozen=True)
class Running(Group):
    """A server that runs, and how it is opened."""

    url: Annotated[
        str | None, _option(metavar="URL", help="The OpenAI-compatible server there, as http://127.0.0.1:8000.")
    ] = None
    api_key_env: Annotated[
        str | None, _option(metavar="NAME", help="The environment variable that holds the server's key.")
    ] = None
    served_model_name: Annotated[
        str | None, _option(metavar="NAME", help="Which of the server's models (default: its only one).")
    ] = None

    def refuse_without_url(self, typed: Mapping[str, str]) -> None:
        """Raises KvtoolError for what is `typed` of a server where none is named: names of fields, and the options."""
        own = {field.name for field in fields(self)}
        if self.url is None and (wrong := next((option for name, option in typed.items() if name in own), None)):
            raise KvtoolError(f"{wrong} is about a server: name its --url")

    def client(self, timeout_s: float = 60.0) -> Client:
        """Who asks it. Raises KvtoolError for what is no URL, or no key."""
        from kvtool.engine.endpoint.address import parse_address, read_key
        from kvtool.engine.endpoint.client import Client

        assert self.url is not None
        return Client(parse_address(self.url), key=read_key(self.api_key_env), timeout_s=timeout_s)

    def facts(self) -> LogFacts:
        """What it says of its cache. Raises KvtoolError or EndpointError."""
        from kvtool.verify.running import running_facts

        client = self.client()
        try:
            return running_facts(client, self.served_model_name)
        finally:
            client.close()


@dataclass(frozen=True)
class ServerFlags(Running):
    """How the server's times are measured, and the card whose floor stands beside them."""

    chat: Annotated[bool, _option("--chat", help="Ask by chat completions; the prompts are words.")] = False
    tokenizer: Annotated[
        Path | None, _option(metavar="FOLDER", help="Of the model, for --chat and conversations (default: MODEL's).")
    ] = None
    reset_cache: Annotated[
        bool, _option("--reset-cache", help="Empty the server's prefix cache before every iteration.")
    ] = False
    timeout: Annotated[float, _option(metavar="SECONDS", help="That a request may take until its last token.")] = 600.0
    gpu: Annotated[str | None, _option(help="The server's card, whose floor is shown: a name of `kvtool gpus`.")] = None

    def options(
        self, grid: BenchGrid, traffic: WorkloadFlags, run: Run, tp: int, typed: Mapping[str, str]
    ) -> ServerOptions:
        """What the server, of `tp` ranks, is asked. Raises KvtoolError, also for `typed` options that say nothing of
        one."""
        from kvtool.bench.cases.goodput import parse_goodput
        from kvtool.bench.engines.server.options import ServerOptions
        from kvtool.engine.config import DEFAULT_BLOCK_SIZE
        from kvtool.machine.nvml import resolve_gpu

        self._refuse_others(typed, grid.peers)
        given = {
            "input_lens": None if grid.input_len is None else length_list(grid.input_len, "input length"),
            "hit_rates": None if grid.hit_rate is None else share_list(grid.hit_rate, "hit rate"),
            **{name: getattr(grid, name) for name in ("output_len", "num_iters", "num_iters_warmup", "num_prompts")},
        }
        return ServerOptions(
            scenarios=() if traffic.workload is None else tuple(split_list(traffic.workload)),
            prefix_len=optional_length(grid.prefix_len, "prefix length"),
            concurrency=grid.concurrency,
            request_rate=grid.request_rate,
            burstiness=grid.burstiness,
            think_s=traffic.think_time,
            time_scale=traffic.time_scale,
            goodput_ms={} if traffic.goodput is None else parse_goodput(traffic.goodput),
            seed=run.seed,
            salt=0 if self.reset_cache else int.from_bytes(os.urandom(4), "big"),
            block_size=DEFAULT_BLOCK_SIZE if run.block_size is None else run.block_size,
            chat=self.chat,
            reset_cache=self.reset_cache,
            gpu=resolve_gpu(self.gpu) if self.gpu else None,
            tp=tp,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _refuse_others(self, typed: Mapping[str, str], peers: str | None) -> None:
        known = OF_A_SERVER | {"tp"} | {field.name for field in fields(self)}
        if peers is not None:
            known |= {field.name for field in fields(Run)}
        for name, option in typed.items():
            if name not in known:
                raise KvtoolError(f"{option} says nothing of a server: leave it out with --url")
        if peers not in (None, OWN):
            raise KvtoolError(f"--peers {peers}: beside a server only {OWN} runs, its own engine on this machine")

    def target(self, name: str | None, models: Path | None, run: Run, *, own: bool) -> Target:
        """The server found, the model that it runs, and how it is asked. Raises KvtoolError or EndpointError."""
        from kvtool.bench.engines.server.measure import Target
        from kvtool.engine.endpoint.server import discover

        if not 0 < self.timeout < 1e6:
            raise KvtoolError(f"--timeout {self.timeout:g} must be above 0 seconds")
        client = self.client(self.timeout)
        server = discover(client, self.served_model_name)
        model = served_model(name, server, models)
        wire = self._wire(name, model, server)
        config = run.config(name or (server.root if server.root == model.source else None)) if own else None
        return Target(client=client, server=server, model=model, wire=wire, own=config)

    def _wire(self, name: str | None, model: Model, server: Server) -> Wire:
        from kvtool.engine.endpoint.wire import Chat, Completions, chat_words
        from kvtool.engine.text import find_tokenizer

        where = next((place for place in (self.tokenizer, name, server.root) if place is not None), "")
        tokenizer = find_tokenizer(str(where)) if where and Path(where).exists() else None
        if self.tokenizer is not None and tokenizer is None:
            raise KvtoolError(f"--tokenizer {self.tokenizer} has no tokenizer.json")
        vocab_size = server.vocab_size or model.vocab_size
        if vocab_size is None:
            raise KvtoolError(
                f"the vocabulary of {model.id} is not known, so no prompt can be made: name another MODEL"
            )
        if not self.chat:
            return Completions(vocab_size, tokenizer)
        if tokenizer is None:
            raise KvtoolError(
                "--chat makes prompts of words: name a --tokenizer FOLDER, or a MODEL folder that has one"
            )
        return Chat(chat_words(tokenizer, vocab_size))


def served_model(name: str | None, server: Server, models: Path | None) -> Model:
    """MODEL, else what the server's own name or path says. Raises KvtoolError where neither is known, or where MODEL
    has another vocabulary than the server's."""
    from kvtool.catalog.models_yaml import load_catalogue
    from kvtool.catalog.resolve import resolve_model

    if name is not None:
        model = resolve_model(name, models_path=models)
        if None not in (server.vocab_size, model.vocab_size) and server.vocab_size != model.vocab_size:
            raise KvtoolError(
                f"{model.id} has a vocabulary of {model.vocab_size} tokens, the served {server.model!r} of "
                f"{server.vocab_size}: they are not one model"
            )
        return model
    for told in filter(None, (server.model, server.root)):
        found = load_catalogue(models).find(told)
        if found is not None:
            return found
        if Path(told).exists():
            return resolve_model(told)
    raise KvtoolError(
        f"the served {server.model!r} is no name that kvtool knows: name the MODEL that it is before --url"
    )
