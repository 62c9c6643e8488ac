"""What drafts tokens ahead of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.cache import STORED
from kvtool.cli.flags.group import Group
from kvtool.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.sizing.drafts import DraftRequest

_option = partial(typer.Option, rich_help_panel=STORED)


@dataclass(frozen=True)
class Drafts(Group):
    """Speculative decoding, as vLLM's JSON or as a draft and how many tokens."""

    num_speculative_tokens: Annotated[
        int, _option(help="Tokens drafted a step, by --draft or by the model's own draft layers (MTP).")
    ] = 0
    draft: Annotated[
        str | None, _option(metavar="MODEL", help="What drafts them: an EAGLE or DFlash head, a smaller model.")
    ] = None
    speculative_config: Annotated[
        str | None, _option(metavar="JSON", help='As vLLM\'s: {"method": "eagle3", "num_speculative_tokens": 3}.')
    ] = None

    def request(self, models: Path | None) -> DraftRequest | None:
        """What was asked for; None where nothing is drafted. Raises KvtoolError where both ways, or half of one, are
        given, and for a draft that nobody knows and that is no head of a known kind.
        """
        from kvtool.catalog.resolve import resolve_model
        from kvtool.sizing.drafts import needs_config

        request = self._asked()
        if request is None or request.name is None or not needs_config(request):
            return request
        try:
            return replace(request, model=resolve_model(request.name, models_path=models))
        except KvtoolError:
            if needs_config(request, strictly=True):
                raise
            return request

    def _asked(self) -> DraftRequest | None:
        from kvtool.sizing.drafts import DraftRequest, parse_speculative_config

        if self.speculative_config is not None:
            if self.draft is not None or self.num_speculative_tokens:
                raise KvtoolError("--speculative-config says it all: leave out --draft and --num-speculative-tokens")
            return parse_speculative_config(self.speculative_config)
        if self.draft is not None and not self.num_speculative_tokens:
            raise KvtoolError(f"--draft {self.draft} needs --num-speculative-tokens")
        if not self.num_speculative_tokens:
            return None
        return DraftRequest(tokens=self.num_speculative_tokens, name=self.draft)
