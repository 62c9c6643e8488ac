"""Numbers that tutorials repeat, each beside kvtool's own, and a verdict: prints examples/claims/README.md.

python examples/claims/claims.py                # print it
python examples/claims/claims.py --write        # write it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain

from claim import Claim
from machines import machine_claims
from pages import page_claims
from policies import policy_claims
from runs import measured_on, run_claims
from sizes import MODELS, capacities, size_claims
from speed import HERE, report, speed_claims

from kvtool.system.files import write_atomic

INTRODUCTION = """\
# Claims about the KV cache

Numbers that tutorials repeat, each beside what kvtool says. `python examples/claims/claims.py` prints this page: every
number in it comes from the commands and calls named, and the times from the documents beside it, which
`python examples/claims/measure.py` makes anew.

*Right*: rounds to what is said, in units of 1000 or 1024. *Close*: within 5 %. *Wrong*: all else."""
CLAIMS = (size_claims, machine_claims, page_claims, policy_claims, speed_claims, run_claims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README.md here instead of printing it")
    text = "\n".join(page()) + "\n"
    if parser.parse_args().write:
        write_atomic(HERE / "README.md", text.encode())
    else:
        print(text, end="")


def page() -> Iterator[str]:
    yield INTRODUCTION
    yield ""
    yield "| what is said | verdict | kvtool says | why | shown by |"
    yield "|---|---|---|---|---|"
    yield from map(line, chain.from_iterable(claims() for claims in CLAIMS))
    yield f"\n{measured_on()}"
    yield "\n## Time a step, with a cache and without\n"
    yield from report()
    yield "\n## How many tokens a memory holds\n"
    yield from capacity_table()
    yield (
        "\nIn pages of 16 tokens, bf16. A card holds weights, activations and the runtime first, and keeps 8 % of its\n"
        "memory back; DRAM and SSD hold nothing but cache."
    )


def line(claim: Claim) -> str:
    commands = "<br>".join(f"`{command}`" for command in claim.shown_by)
    return f"| {claim.said} | **{claim.verdict}** | {claim.found} | {claim.why} | {commands} |"


def capacity_table() -> Iterator[str]:
    yield f"| memory | {' | '.join(f'{model}, tokens' for model in MODELS)} | shown by |"
    yield "|---|---|---|---|"
    for capacity in capacities():
        cells = [f"{tokens:,}" if tokens else "none: its weights do not fit" for tokens in capacity.tokens.values()]
        yield f"| {capacity.memory} | {' | '.join(cells)} | `{capacity.shown_by}` |"


if __name__ == "__main__":
    main()
