"""The skeleton of a report page: one file, no network, no script, light and dark, readable on a phone and in print."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --muted: #59636e; --line: #d8dee4; --card: #f6f8fa;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --muted: #9aa4ae; --line: #343a40;
  --card: #1d2125; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h1, h2, h3, p, li, dd { overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
.subtitle, figcaption, dd { color: var(--muted); }
.key { background: var(--card); border-left: 4px solid var(--accent); padding: .75rem 1rem; margin: 1rem 0; }
.key ul { margin: 0; padding-left: 1.2rem; }
.warning { border-left-color: #d55e00; }
code { background: var(--card); padding: .1rem .3rem; overflow-wrap: anywhere; }
.key li + li { margin-top: .3rem; }
figure { margin: 0 0 1.5rem; min-width: 0; }
figcaption { font-size: .875rem; max-width: 60rem; margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: pre; border-bottom-width: 2px; }
th.label, td.label { text-align: left; }
td.label { white-space: pre; }
th:first-child, td:first-child { padding-left: 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts div { overflow-x: auto; max-width: 100%; }
.charts img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .6rem; } }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""


LEAST_SCALE = 0.45  # pixels of a page to one of a chart


def page(title: str, subtitle: str, body: Sequence[str]) -> str:
    """A whole document; `body` holds ready HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>\n<main>\n'
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, parts: Sequence[str]) -> str:
    """A headed part of the page; nothing where there is nothing in it."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(heading)}</h2>\n{inside}\n</section>" if inside else ""


def key_points(sentences: Sequence[str]) -> str:
    """The sentences to read when one reads nothing else."""
    return f'<div class="key">{bullets(sentences)}</div>' if sentences else ""


def warnings(sentences: Sequence[str]) -> str:
    """What to know before any figure is read."""
    return f'<div class="key warning"><strong>Warning</strong>{bullets(sentences)}</div>' if sentences else ""


def made_of(command: str, files: Sequence[str]) -> str:
    """The command line that made the page, and links to the files beside it that hold its data."""
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in files)
    made = f"Made by <code>{escape(command)}</code>. " if command else ""
    return f"<p>{made}Data: {links}.</p>"


def bullets(sentences: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>\n{items}\n</ul>" if sentences else ""


def definitions(terms: Mapping[str, str]) -> str:
    items = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return f"<dl>\n{items}\n</dl>" if terms else ""


def _least_width(png: bytes) -> int:
    """Pixels of a page below which its words would be too small to read; a PNG's width stands in its header."""
    return round(LEAST_SCALE * int.from_bytes(png[16:20], "big"))


def charts(images: Mapping[str, bytes]) -> str:
    """PNGs side by side where there is room, scrolled sideways where one would be too small to read; the keys say what
    each shows, for readers who cannot see it.
    """
    figures = "\n".join(
        f'<div style="flex: 1 1 {_least_width(png)}px"><img alt="{escape(text)}" style="min-width: '
        f'{_least_width(png)}px" src="data:image/png;base64,{b64encode(png).decode()}"></div>'
        for text, png in images.items()
    )
    return f'<div class="charts">\n{figures}\n</div>' if images else ""
