"""`kvtool COMMAND --help`: the common options first, then panel by panel; no name is cut, however long."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand

from kvtool.errors import KvtoolError


class Command(TyperCommand):
    """A command whose help is plain text: boxes would cut long options short on a terminal of 80 columns."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **{**given, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does. Raises KvtoolError for an option given twice, of which it would keep only the last."""
        *_, order = self.make_parser(ctx).parse_args(list(args))
        for option, count in Counter(map(id, order)).items():
            given = next(one for one in order if id(one) == option)
            single = given.param_type_name == "option" and not given.multiple and not getattr(given, "is_flag", False)
            if count > 1 and single:
                raise KvtoolError(
                    f"{max(given.opts, key=len)} is given {count} times: give it once (a list takes commas)"
                )
        return list(super().parse_args(ctx, args))

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
