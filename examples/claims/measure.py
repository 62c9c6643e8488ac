"""Makes the documents beside it anew, on an idle machine: the page takes from them what it cannot work out.

python examples/smollm2_weights.py smollm2          # real weights, for accuracy.json
python examples/claims/measure.py                   # all of them, some five minutes
python examples/claims/measure.py scenarios.json    # one of them
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from kvtool.system.files import write_atomic

HERE = Path(__file__).parent
ONE = "--num-iters 1 --json"
STEPS = "--parts latency --input-len 512 --batch-size 8 --output-len 32 --num-iters 3 --json"
MEASUREMENTS = {
    "decode.json": "kvtool bench smollm2-135m --parts latency --input-len 10000,1000,100 --batch-size 1 "
    f"--output-len 48 --num-iters-warmup 0 {ONE}",
    "no-cache.json": f"kvtool bench smollm2-135m --parts no-cache --input-len 100,1000,4000 --output-len 3 {ONE}",
    "kernels.json": "kvtool kernels smollm2-135m --context 1k,4k --batch-size 8 --peers sdpa,naive,gathered --json",
    "scenarios.json": "kvtool bench smollm2-135m --workload multi-turn,translation,few-shot,independent "
    "--input-len 192 --output-len 2 --num-prompts 8 --num-iters 4 --json",
    "accuracy.json": "kvtool bench --weights smollm2/hf --parts accuracy --kv-cache-dtype int8_per_token_head "
    "--num-iters 4 --json",
    "bf16.json": f"kvtool bench smollm2-135m --kv-cache-dtype bf16 {STEPS}",
    "int8.json": f"kvtool bench smollm2-135m --kv-cache-dtype int8_per_token_head {STEPS}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    names = parser.parse_args().names or list(MEASUREMENTS)
    if unknown := set(names) - MEASUREMENTS.keys():
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(MEASUREMENTS)}")
    for name in names:
        print(f"$ {MEASUREMENTS[name]}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", *shlex.split(MEASUREMENTS[name])]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{MEASUREMENTS[name]!r} exited {done.returncode}")
        write_atomic(HERE / name, done.stdout)


if __name__ == "__main__":
    main()
