"""Makes the outputs that README.md and docs/ show. Each block holds commands after `$` and what they printed, under a
comment that says where its output comes from:

    <!-- run -->                      the commands, run again; the same on every machine
    <!-- report: FILE; TITLE; ... --> the document FILE of examples/reports, printed again
    <!-- recorded -->                 the commands, run once by `make readme` on the machine that the README names
    <!-- tests -->                    the closing line of the tests, run once like the recorded ones, and last

`run` and `report` take titles: lines of the output that begin the parts to show; [...] stands for the others.
Between <!-- gpu --> and <!-- /gpu --> stand the cards that have a folder in examples/reports, as `make gpu` wrote it.

    python tools/readme.py            measure everything anew (some ten minutes of an idle machine)
    python tools/readme.py --exact    only what needs no measurement
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from kvtool.report.bench.bench import print_bench, tables
from kvtool.report.kernels.kernels import print_kernels
from kvtool.report.machine.machine import print_environment
from kvtool.report.machine.tiers import print_tiers
from kvtool.report.terminal import Terminal
from kvtool.results import BenchDocument, EnvDocument, KernelsDocument, TiersDocument, read_document
from kvtool.system.files import write_atomic

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
REPORTS = ROOT / "examples" / "reports"
COLUMNS = 100
BLOCK = re.compile(
    r"<!-- (?P<kind>run|report|recorded|tests)(?:: (?P<what>[^\n]+?))? -->\n```console\n(?P<body>.*?)```\n", re.S
)
GPU = re.compile(r"(?<=<!-- gpu -->\n).*?(?=<!-- /gpu -->\n)", re.S)
NO_CARD = "No figures of a card are published yet: `make gpu` measures yours.\n"
MACHINE = re.compile(r"(?<=<!-- machine -->\n).*\n")
SMALL = "--runs 3 --parts latency --input-len 512 --batch-size 8 --output-len 16"
STREAMING = "--num-layers 6 --input-len 64 --output-len 32 --batch-size 1,8 --parts latency --num-iters 5"
WORKLOADS = "--workload translation,agent,ranking,parallel --num-iters 2"
FOUR_LAYERS = "smollm2-135m --num-layers 4 --dtype fp32 --num-iters 2"
RANKS = f"{FOUR_LAYERS} --input-len 128 --output-len 8 --tp 1,3 --cp 1,2 --ring pass-kv,pass-q"
APART = (
    f"{FOUR_LAYERS} --input-len 256 --prefix-len 128 --disaggregate prefill=1,decode=1,transfer=tcp,by=layer "
    "--request-rate 4 --goodput ttft:500,tpot:100"
)
# What is measured into examples/reports; a name with .json is the file for what the command prints.
MEASUREMENTS = {
    "cpu/bench": "kvtool bench --out cpu",
    "cpu-one-thread/bench.json": f"kvtool bench --threads 1 {SMALL} --json",
    "cpu-two-threads/bench.json": f"kvtool bench --threads 2 {SMALL} --json",
    "cpu-llama-3.2-1b/bench.json": f"kvtool bench llama-3.2-1b {STREAMING} --json",
    "cpu-workloads/bench.json": f"kvtool bench {WORKLOADS} --json",
    "cpu-ranks/bench": f"kvtool bench {RANKS} --out cpu-ranks",
    "cpu-apart/bench": f"kvtool bench {APART} --out cpu-apart",
    "cpu/env.json": "kvtool env --measure --json",
    "cpu/kernels": "kvtool kernels --peers sdpa --out cpu",
    "cpu-tiers/tiers": "kvtool tiers --out cpu-tiers",
}
# And from ROOT, where the commands of the pages keep the weights that they fetch.
OF_WEIGHTS = (
    "python examples/smollm2_weights.py smollm2",
    "kvtool bench smollm2/hf --parts accuracy --out examples/reports/cpu-accuracy",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", action="store_true", help="measure nothing")
    exact: bool = parser.parse_args().exact
    if not exact:
        measure()
    for kind in ("report", "run") if exact else ("report", "run", "recorded", "tests"):
        update(kind)


def measure() -> None:
    """Make the documents of examples/reports on this machine."""
    for name, command in MEASUREMENTS.items():
        say(command)
        file = REPORTS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        printed = run(command, cwd=REPORTS)
        if file.suffix == ".json":
            write_atomic(file, printed.encode())
    for command in OF_WEIGHTS:
        say(command)
        run(command, cwd=ROOT)


def update(kind: str) -> None:
    """Write every page with its blocks of this kind made anew; the later kinds see it."""
    for page in PAGES:
        write_atomic(page, renewed(page.read_text(), kind).encode())


def renewed(text: str, kind: str) -> str:
    """A page with its blocks of this kind made anew, and what stands on the README alone."""

    def renew(found: re.Match[str]) -> str:
        if found["kind"] != kind:
            return found[0]
        head = found[0][: found.start("body") - found.start()]
        return f"{head}{body(kind, found['what'], found['body'])}```\n"

    text = MACHINE.sub(lambda _: machine() + "\n", BLOCK.sub(renew, text))
    return GPU.sub(lambda _: cards(REPORTS), text)


def blocks(text: str, kind: str) -> list[tuple[str | None, str]]:
    """What each block of this kind shows, and its body."""
    return [(found["what"], found["body"]) for found in BLOCK.finditer(text) if found["kind"] == kind]


def body(kind: str, what: str | None, old: str) -> str:
    """The commands of a block, each with its output."""
    commands = [line.removeprefix("$ ") for line in old.splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{output(kind, what, command)}" for command in commands)


def output(kind: str, what: str | None, command: str) -> str:
    if kind == "report":
        return printed_again(*str(what).split("; "))
    say(command)
    if kind == "tests":
        text = run("env OMP_NUM_THREADS=1 python -m pytest -n 2 -m 'not gpu and not aot'", cwd=ROOT)
        return text.splitlines()[-1] + "\n"
    text = tidy(run(command, cwd=ROOT))
    return excerpt(text, tuple(what.split("; "))) if what else text


def run(command: str, cwd: Path) -> str:
    """Standard output of a command of this interpreter's environment, at the width of the pages. Exits if it fails."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": str(COLUMNS),
        "NO_COLOR": "1",
    }
    done = subprocess.run(shlex.split(command), cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"make readme: {command!r} exited {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def say(command: str) -> None:
    print("$", command, file=sys.stderr, flush=True)


def tidy(text: str) -> str:
    """Without blanks at line ends, and blank lines at both ends."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


def printed_again(file: str, *titles: str) -> str:
    """What the command printed, from the document it left: all of it, or the sections of these titles."""
    path = REPORTS / file
    if path.stem == "kernels":
        text = shown(lambda console: print_kernels(read_document(path, KernelsDocument), console))
        return excerpt(text, titles) if titles else text
    if path.stem == "tiers":
        text = shown(lambda console: print_tiers(read_document(path, TiersDocument), console))
        return excerpt(text, titles) if titles else text
    if path.stem == "env":
        return shown(lambda console: print_environment(read_document(path, EnvDocument), console))
    document = read_document(path, BenchDocument)
    text = shown(lambda console: print_bench(document, console))
    known = [*(table.title for table in tables(document)), "In short", "Assumed"]
    return sections(text, known, titles) if titles else text


def shown(print_document: Callable[[Console], None]) -> str:
    out = io.StringIO()
    console = Terminal(file=out, width=COLUMNS, no_color=True)
    print_document(console)
    return tidy(out.getvalue())


def sections(text: str, known: list[str], wanted: tuple[str, ...]) -> str:
    """The wanted ones, each up to the next known title, with [...] where others are left out."""
    parts = re.split(rf"^(?=(?:{'|'.join(map(re.escape, known))})$)", text, flags=re.M)
    kept = [tidy(part) if part.splitlines()[0] in wanted else "[...]\n" for part in parts]
    return "\n".join(part for part, before in zip(kept, [None, *kept], strict=False) if part != before)


def excerpt(text: str, titles: tuple[str, ...]) -> str:
    """The parts that begin with these titles, with [...] where others are left out.

    A part ends at a blank line: a table at the one after its rows, since one stands below its title too.
    """
    kept, lines = [], text.splitlines()
    inside, blanks = False, 0
    for line in lines:
        if line.startswith(titles):
            inside, blanks = True, 0
        elif not line.strip():
            blanks += 1
            inside = inside and blanks < 2 and bool(kept) and kept[-1].startswith(titles)
        if inside or kept[-1:] != ["[...]"]:
            kept.append(line if inside else "[...]")
    return "\n".join(kept) + "\n"


def cards(reports: Path) -> str:
    """What came of every card that has a folder; NO_CARD where none has."""
    folders = sorted(path.parent for path in reports.glob("*/targets.json"))
    return "\n".join(card(folder) for folder in folders) or NO_CARD


def card(folder: Path) -> str:
    """One card in a few lines: its name and limits, how many aims it reached, its charts, and where the rest is."""
    where = f"examples/reports/{folder.name}"
    found = json.loads((folder / "targets.json").read_bytes())
    verdicts = Counter(row["verdict"] for row in found["targets"])
    counts = ", ".join(f"{verdicts[name]} {name}" for name in ("ambitious", "met", "missed", "not measured"))
    behind = f"a peer was ahead at {len(found['behind'])} points" if found["peers"] else "no peer ran"
    pictures = [f"![{path.stem} on {folder.name}]({where}/{path.name})" for path in sorted(folder.glob("*.png"))]
    return "\n".join(
        [
            (folder / "targets.md").read_text().partition("\n")[0],
            f"Of {len(found['targets'])} aims: {counts}; {behind}: [{folder.name}/targets.md]({where}/targets.md).",
            "",
            *(f"{picture}\n" for picture in pictures),
        ]
    )


def machine() -> str:
    """The hardware and software of the committed measurements, in a sentence."""
    facts = read_document(REPORTS / "cpu" / "bench.json", BenchDocument).environment
    return (
        f"Measured on {facts['cpu']}, {facts['physical_cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, "
        f"torch {facts['torch']}, Python {facts['python']}, {str(facts['date_utc'])[:10]}."
    )


if __name__ == "__main__":
    main()
