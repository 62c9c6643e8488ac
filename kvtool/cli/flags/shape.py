"""A model given by its shape, or by its layers, instead of a name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.catalog.model import Model

_option = partial(typer.Option, rich_help_panel="Instead of MODEL")
AsOption = Annotated[
    str | None,
    typer.Option("--as", metavar="FAMILY", help="Read a config that kvtool does not know as another: llama, qwen3 ..."),
]


def check_named(family: str | None, name: str | None) -> None:
    """Raises KvtoolError where --as has no MODEL to read."""
    if family is not None and name is None:
        raise KvtoolError(f"--as {family} is how to read MODEL's config: name its file or repository")


@dataclass(frozen=True)
class Shape(Group):
    """Counts of equal layers, or a file of layers."""

    layers: Annotated[int | None, _option(help="Layers of the shape.")] = None
    heads: Annotated[int | None, _option(help="Query heads.")] = None
    kv_heads: Annotated[int | None, _option(help="KV heads (default: as heads).")] = None
    head_dim: Annotated[int | None, _option(help="Elements of a head.")] = None
    layer_spec: Annotated[Path | None, _option(metavar="FILE", help="Layers written out, in YAML or JSON.")] = None
    as_family: AsOption = None

    def model(self, name: str | None, models: Path | None) -> Model:
        """MODEL, or the shape or layers given instead of it. Raises KvtoolError."""
        from kvtool.catalog.layer_spec import read_layer_spec
        from kvtool.catalog.resolve import resolve_model

        given = self._given()
        if self.layer_spec is not None:
            if name is not None or given:
                left_out = ", ".join(given) or "MODEL"
                raise KvtoolError(f"--layer-spec {self.layer_spec} is a model of its own: leave out {left_out}")
            return read_layer_spec(self.layer_spec)
        check_named(self.as_family, name)
        if name is None:
            return self._inline()
        if given:
            raise KvtoolError(f"{name!r} already has a shape: leave out {', '.join(given)}, or MODEL")
        return resolve_model(name, models_path=models, family=self.as_family)

    def _given(self) -> list[str]:
        counts = {
            "--layers": self.layers,
            "--heads": self.heads,
            "--kv-heads": self.kv_heads,
            "--head-dim": self.head_dim,
        }
        return [flag for flag, count in counts.items() if count is not None]

    def _inline(self) -> Model:
        from kvtool.catalog.resolve import inline_model

        needed = {"--layers": self.layers, "--heads": self.heads, "--head-dim": self.head_dim}
        missing = [flag for flag, count in needed.items() if count is None]
        if missing and self._given():
            raise KvtoolError(f"{' and '.join(missing)} must stand beside {', '.join(self._given())}")
        if self.layers is None or self.heads is None or self.head_dim is None:
            raise KvtoolError(
                "name a MODEL, or give --layers, --heads, --head-dim (and --kv-heads), or --layer-spec FILE"
            )
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        return inline_model(layers=self.layers, heads=self.heads, kv_heads=kv_heads, head_dim=self.head_dim)
