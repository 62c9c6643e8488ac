"""`kvtool COMMAND --help`: the common options first, then panel by panel; no name is cut, however long."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose help is plain text: boxes would cut long options short on a terminal of 80 columns."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **{**given, "rich_markup_mode": None})

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
