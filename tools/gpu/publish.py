"""Archives of `make gpu` and its like as a card's folder of examples/reports, its tiles, and its part of the README:
`python -m tools.gpu.publish gpu-report.tar.gz [peers.tar.gz ...]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tools.gpu.archive import unpacked
from tools.gpu.process import ROOT
from tools.gpu.run import VERDICTS

if TYPE_CHECKING:
    from kvtool.results import BenchDocument, KernelsDocument

REPORTS = ROOT / "examples" / "reports"
TILES = ROOT / "kvtool" / "kernels" / "triton" / "tiles" / "cards"
TUNED = "tune/"
KEPT = ("run.md", "run.json")
TABLES = {"registers.json": "compiled/registers.json", "environment.json": "smoke/environment.json"}
BESIDE = "peer"  # begins the names of pieces that measure others beside ours, at points that are measured alone too
D = TypeVar("D", "KernelsDocument", "BenchDocument")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, and the README where it is the checkout's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path, nargs="+", help="of one card; of files of one name the last stays")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="another folder for cards")
    parser.add_argument("--tiles", type=Path, default=TILES, help="another folder for tuned tiles")
    given = parser.parse_args(arguments)
    found = {name: data for archive in given.archives for name, data in unpacked(archive).items()}
    written = [publish_tiles(found, given.tiles), publish(found, given.reports)]
    if given.reports == REPORTS:
        from tools.readme import update

        update("report")
    print(f"written: {', '.join(str(path) for path in written if path) or 'nothing: nothing was measured'}")


def publish_tiles(found: Mapping[str, bytes], tiles: Path) -> Path | None:
    """Tiles that were tuned, to where kernels look for them; None of an archive without any."""
    from kvtool.kernels.triton.tiles.tuned import file_name
    from kvtool.system.files import write_atomic

    for name, data in found.items():
        if name.startswith(TUNED) and name == TUNED + file_name(str(json.loads(data).get("card"))):
            write_atomic(tiles / name.removeprefix(TUNED), data)
            return tiles / name.removeprefix(TUNED)
    return None


def publish(found: Mapping[str, bytes], reports: Path) -> Path | None:
    """The card's folder below `reports`; None of an archive that has no document of a measurement."""
    documents = {name: one for name, data in sorted(found.items()) if (one := _document(name, data)) is not None}
    if not documents:
        return None
    from kvtool.system.files import write_all
    from tools.targets import judged

    folder = reports / slug(str(next(iter(documents.values()))["environment"]["gpu"]))
    files = {folder / name: found[name] for name in KEPT if name in found}
    files |= {folder / name: found[inside] for name, inside in TABLES.items() if inside in found}
    files |= {folder / name: data for name, data in judged(list(documents.values())).items()}
    files[folder / "timelines.json"] = _encoded(timelines(found))
    files[folder / "verdicts.json"] = _encoded(verdicts(found))
    write_all(files)
    beside = {name for name in documents if name.removeprefix("spare/").startswith(BESIDE)}
    write_documents([one for name, one in documents.items() if name not in beside], folder)
    write_documents([one for name, one in documents.items() if name in beside], folder / "peers")
    return folder


def _document(name: str, data: bytes) -> dict[str, Any] | None:
    """A document of kernels or of a benchmark that ran on a card."""
    from tools.targets import SCHEMAS

    try:
        found = json.loads(data) if name.endswith(".json") else None
    except ValueError:
        return None
    is_one = isinstance(found, dict) and found.get("schema") in SCHEMAS and found["environment"].get("gpu")
    return found if is_one else None


def slug(card: str) -> str:
    """A card's name as a folder: NVIDIA H200 -> h200."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in card.lower().removeprefix("nvidia"))
    return "-".join(filter(None, letters.split("-")))


def write_documents(documents: Sequence[dict[str, Any]], folder: Path) -> None:
    """All cases of kernels as one document with its table and chart, and all of models as another."""
    import msgspec

    from kvtool.report.bench.bench import write_bench
    from kvtool.report.kernels.kernels import write_kernels
    from kvtool.results import BenchDocument, KernelsDocument

    of_kernels = [one for one in documents if one["schema"].startswith("kvtool.kernels")]
    of_models = [one for one in documents if one["schema"].startswith("kvtool.bench")]
    if of_kernels:
        write_kernels(joined([msgspec.convert(one, KernelsDocument) for one in of_kernels]), folder)
    if of_models:
        write_bench(joined([msgspec.convert(one, BenchDocument) for one in of_models]), folder, command="make gpu")
        (folder / "report.html").unlink(missing_ok=True)


def joined(documents: Sequence[D]) -> D:
    """The first, with the cases of all, and what any of them assumed."""
    import msgspec

    return msgspec.structs.replace(
        documents[0],
        cases=[case for one in documents for case in one.cases],
        assumptions=list(dict.fromkeys(said for one in documents for said in one.assumptions)),
    )


def timelines(found: Mapping[str, bytes]) -> list[Any]:
    """Of each model whose steps were profiled."""
    return [json.loads(data) for name, data in sorted(found.items()) if "/timeline-of-" in name]


def verdicts(found: Mapping[str, bytes]) -> dict[str, Any]:
    """The times of all ways of each product that was asked for."""
    files = [json.loads(data) for name, data in sorted(found.items()) if name.startswith(VERDICTS)]
    return {question: times for file in files for question, times in file.get("times_ms", {}).items()}


def _encoded(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


if __name__ == "__main__":
    main()
