"""What lies below the pool of pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.cache.tiers.options import TierOptions

_option = partial(typer.Option, rich_help_panel="Tiers below the pool")


@dataclass(frozen=True)
class Tiers(Group):
    """Where cached prefixes go that leave the pool, and when."""

    tiers: Annotated[
        str | None,
        _option(metavar="LIST", help="dram=4GiB, disk=FOLDER:20GiB or both; and exclusive, to keep no page in two."),
    ] = None
    write_policy: Annotated[
        str | None,
        _option(help="Pages move down once whole (through), at their K-th hit (selective:K), or evicted (back)."),
    ] = None

    def options(self) -> TierOptions | None:
        """The tiers; None without any. Raises KvtoolError."""
        from kvtool.cache.tiers.options import parse_tiers

        if self.tiers is None:
            if self.write_policy is not None:
                raise KvtoolError("--write-policy says when pages move to --tiers: name those, as --tiers dram=4GiB")
            return None
        return parse_tiers(self.tiers, self.write_policy or "through")
