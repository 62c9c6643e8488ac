"""Which engine's plan to tell, and what it is started with: its own flags by the table of sizing.engines.flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Self

import typer

from kvtool.cli.flags.card import CARD
from kvtool.cli.flags.group import Group
from kvtool.cli.flags.layout import LAYOUT
from kvtool.cli.values import optional_size
from kvtool.sizing.engines.flags import BY_FIELD, FLAGS, Flag
from kvtool.sizing.engines.options import EngineOptions
from kvtool.system.errors import KvtoolError
from kvtool.units import parse_length, split_list

ENGINE = Parameter(
    "engine",
    Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What would this engine allocate? vllm (or a release, vllm==0.23), sglang, tensorrt-llm, lmdeploy, "
            "llama.cpp, ollama.",
        ),
    ],
)
_layout = partial(typer.Option, rich_help_panel=LAYOUT)
_card = partial(typer.Option, rich_help_panel=CARD)
TYPES = {
    "count": int | None,
    "size": str | None,
    "fraction": float | None,
    "switch": bool | None,
    "name": str,
    "dtype": str,
}


@dataclass(frozen=True)
class EngineFlags(Group):
    """An engine, and the values of its flags by their fields of EngineOptions."""

    engine: str | None
    values: Mapping[str, Any]
    flags: ClassVar[tuple[Flag, ...]] = tuple(flag for flag in FLAGS if flag.help)

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """--engine, then an option for each row: those of both engines, of vLLM, of SGLang."""
        pools = ("vllm", "sglang", "tensorrt-llm", "lmdeploy")
        panels = [pools, pools[:2], pools[:1], pools[1:2], pools[2:], ("llama.cpp", "ollama")]
        return [ENGINE, *(_parameter(flag) for flag in sorted(cls.flags, key=lambda flag: panels.index(flag.engines)))]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Raises KvtoolError for a size that is none."""
        return cls(engine=given["engine"], values={flag.field: _value(flag, given) for flag in cls.flags})

    def releases(self) -> list[tuple[str, str | None]]:
        """(name, version) of each engine of a comma list. Raises KvtoolError for an unknown one."""
        from kvtool.sizing.engines.run import parse_engine

        return [] if self.engine is None else [parse_engine(item) for item in split_list(self.engine)]

    def start(self, *, auto_fit: bool, **shared: Any) -> EngineOptions | None:
        """The engine's start with `shared`, which a size has without an engine too; None without an engine.

        Raises KvtoolError for an unknown engine, and for flags that it does not have.
        """
        from kvtool.sizing.engines.run import parse_engine

        name, version = (None, None) if self.engine is None else parse_engine(split_list(self.engine)[0])
        if auto_fit and name != "vllm":
            raise KvtoolError("--max-model-len -1 needs --engine vllm")
        for flag in self.flags:
            if self.values[flag.field] != flag.default and name not in flag.engines:
                raise KvtoolError(f"{flag.option} needs --engine {' or '.join(flag.engines)}")
        if name is None:
            return None
        return EngineOptions(name=name, version=version, auto_fit=auto_fit, **shared, **self.values)


@dataclass(frozen=True)
class EngineMemory(EngineFlags):
    """An engine, and nothing of its flags but the memory for its cache."""

    flags: ClassVar[tuple[Flag, ...]] = (BY_FIELD["kv_cache_memory_bytes"],)


def _parameter(flag: Flag) -> Parameter:
    """The option of one row, in the panel of the engines that have it."""
    names = [flag.option]
    default = flag.default
    if flag.option.startswith("--no-"):
        names = [f"{flag.option.replace('--no-', '--')}/{flag.option}"]
    elif flag.kind == "switch":
        default = False  # --disable-NAME and --enforce-eager are off by default
    option = typer.Option(
        *names,
        metavar="SIZE" if flag.kind == "size" else None,
        help=flag.help,
        show_default=flag.kind != "switch",
        rich_help_panel=f"With --engine {' or '.join(filter(None, (', '.join(flag.engines[:-1]), flag.engines[-1])))}",
    )
    return Parameter(
        _name(flag), Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[TYPES[flag.kind], option]
    )


def _name(flag: Flag) -> str:
    """The parameter's: the field's, but for switches that turn it off."""
    return flag.option.removeprefix("--").removeprefix("no-").replace("-", "_")


def _value(flag: Flag, given: Mapping[str, Any]) -> Any:
    value = given[_name(flag)]
    if flag.kind == "size":
        return optional_size(value, flag.field.replace("_", " "))
    turns_off = flag.kind == "switch" and not flag.option.startswith("--no-")
    return not value if turns_off else value


@dataclass(frozen=True)
class Stated(Group):
    """What is known of a start besides its log, by fields of EngineOptions or Parallel: it counts before the log."""

    tp: Annotated[int | None, typer.Option(help="Tensor parallel ranks, where the log does not say.")] = None
    max_model_len: Annotated[str | None, typer.Option(help="The longest sequence served.")] = None
    kv_cache_dtype: Annotated[str | None, typer.Option(help="Of the cache, as for `size`.")] = None
    block_size: Annotated[int | None, typer.Option(help="Tokens a block or page.")] = None
    mamba_ssm_cache_dtype: Annotated[str | None, typer.Option(help="Of recurrent state.")] = None
    async_scheduling: Annotated[
        bool | None,
        typer.Option("--async-scheduling/--no-async-scheduling", help="vLLM's, on by default."),
    ] = None
    pp: Annotated[int | None, _layout(help="Pipeline stages.")] = None
    dp: Annotated[int | None, _layout(help="Data parallel replicas.")] = None
    dcp: Annotated[int | None, _layout(help="Decode context parallel ranks.")] = None
    ep: Annotated[int | None, _layout(help="Expert parallel ranks.")] = None
    max_num_batched_tokens: Annotated[int | None, _card(help="Tokens that vLLM runs in a step.")] = None
    max_num_seqs: Annotated[int | None, _card(help="Sequences run at a time.")] = None
    gpu_memory_utilization: Annotated[float | None, _card(help="vLLM's part of the card.")] = None
    mem_fraction_static: Annotated[float | None, _card(help="SGLang's part of the card.")] = None

    def given(self) -> dict[str, str]:
        """What was given, as a log would say it. Raises KvtoolError."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.max_model_len is not None:
            given["max_model_len"] = parse_length(self.max_model_len, "max model len")
        return {name: str(value) for name, value in given.items()}
