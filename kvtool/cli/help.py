"""`kvtool COMMAND --help`: the common options first, then panel by panel; no name is cut, however long."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand

from kvtool.errors import KvtoolError

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
}


class Command(TyperCommand):
    """A command whose help is plain text: boxes would cut long options short on a terminal of 80 columns."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **{**given, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; an option that an engine spells otherwise is answered with ours. Raises KvtoolError for one
        given twice, of which it would keep only the last.
        """
        try:
            self._refuse_repeated(ctx, args)
            return list(super().parse_args(ctx, args))
        except Exception as error:
            typed = str(getattr(error, "option_name", ""))
            known = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
            if SPELLINGS.get(typed) in known and hasattr(error, "possibilities"):
                error.possibilities = [SPELLINGS[typed]]
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
