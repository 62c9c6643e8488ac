"""`kvtool COMMAND --help`: the common options first, then panel by panel; no name is cut, however long."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from kvtool.cli.flags.defaults import FILE, PROJECT, find_defaults
from kvtool.system.errors import KvtoolError

# Options as vLLM, SGLang and llama.cpp spell them, and as kvtool does.
SPELLINGS = {
    "--tensor-parallel-size": "--tp",
    "--tp-size": "--tp",
    "--pipeline-parallel-size": "--pp",
    "--pp-size": "--pp",
    "--data-parallel-size": "--dp",
    "--dp-size": "--dp",
    "--decode-context-parallel-size": "--dcp",
    "--expert-parallel-size": "--ep",
    "--ep-size": "--ep",
    "--enable-expert-parallel": "--ep",
    "--page-size": "--block-size",
    "--ctx-size": "--context",
    "--context-length": "--max-model-len",
    "--num-gpu-layers": "--n-gpu-layers",
    "--batch": "--batch-size",
    "--kv-dtype": "--kv-cache-dtype",
    "--ctx": "--context",
    "-c": "--context",
    "-b": "--batch-size",
    "-o": "--out",
    "--output": "--out",
}
AS_OPTION = ("--model", "--model-path", "--model-id", "-m")  # MODEL, as engines take it


class AsTyped:
    """How typer coerces an option, but for what is right as it is: text, a default, and nothing. It asks pydantic of
    every option, given or not, and to import that takes longer than to size a model."""

    def __init__(self, parameter: Any) -> None:
        self._kind, self._typers = parameter.type_descriptor.annotation, parameter.get_runtime_param

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if (type(value), value) == (type(param.default), param.default) or (self._kind is str and type(value) is str):
            return value
        if self._kind == list[str] and all(type(one) is str for one in value):
            return list(value)
        return self._typers().coerce(value, param=param, ctx=ctx)


def leave_as_typed(parameters: Iterable[Any]) -> None:
    """Spare what needs no coercion. A typer without pydantic has nothing to spare."""
    for parameter in parameters:
        if hasattr(parameter, "type_descriptor") and "get_runtime_param" not in vars(parameter):
            coercion = AsTyped(parameter)
            parameter.get_runtime_param = lambda coercion=coercion: coercion


class Command(TyperCommand):
    """A command whose help is plain text: boxes would cut long options short on a terminal of 80 columns."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **{**given, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; an option that an engine spells otherwise is answered with ours. Raises KvtoolError for one
        given twice, of which it would keep only the last.
        """
        try:
            leave_as_typed(self.get_params(ctx))
            self._refuse_repeated(ctx, args)
            ctx.default_map = self._defaults(ctx)
            rest = list(super().parse_args(ctx, args))
            self._tell_defaults(ctx)
            return rest
        except Exception as error:
            typed = str(getattr(error, "option_name", ""))
            known = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
            if SPELLINGS.get(typed) in known and hasattr(error, "possibilities"):
                error.possibilities = [SPELLINGS[typed]]
            if typed in AS_OPTION and any(parameter.name == "model" for parameter in self.get_params(ctx)):
                raise KvtoolError(f"{typed}: MODEL stands without an option, as {ctx.command_path} MODEL") from error
            raise

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        *_, order = self.make_parser(ctx).parse_args(list(args))
        for option, count in Counter(map(id, order)).items():
            given = next(one for one in order if id(one) == option)
            single = given.param_type_name == "option" and not given.multiple and not getattr(given, "is_flag", False)
            if count > 1 and single:
                raise KvtoolError(
                    f"{max(given.opts, key=len)} is given {count} times: give it once (a list takes commas)"
                )

    def _defaults(self, ctx: Any) -> dict[str, Any]:
        """What the project's file says of this command's options. Raises KvtoolError."""
        found = find_defaults(Path.cwd())
        if found is None:
            return {}
        program = ctx.find_root().command
        found.require_known({flag for command in leaves(program) for flag in _flags(command)})
        return found.of(tuple(ctx.command_path.split()[1:]), _flags(self))

    def _tell_defaults(self, ctx: Any) -> None:
        """Name the options that the project's file set, since they change the answer unseen."""
        told = [
            f"{max(parameter.opts, key=len)} {ctx.params[parameter.name]}"
            for parameter in self.get_params(ctx)
            if getattr(ctx.get_parameter_source(parameter.name), "name", "") == "DEFAULT_MAP"
        ]
        if told:
            print(f"kvtool: from {FILE} or {PROJECT}: {', '.join(told)}", file=sys.stderr)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section for each panel, in the order of their first options; those without a panel come first."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def leaves(group: Any) -> Iterator[Any]:
    """Every command that can be run, of a program or of one command."""
    for command in getattr(group, "commands", {"": group}).values():
        yield from leaves(command) if hasattr(command, "commands") else [command]


def _flags(command: Any) -> dict[str, str]:
    """Parameter name by flag without its dashes."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {flag.lstrip("-"): str(parameter.name) for parameter in options for flag in parameter.opts}
