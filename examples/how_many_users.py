"""How many users of 32k tokens fit 8 H100s with each of four models? The arithmetic of `kvtool size`, from Python.

python examples/how_many_users.py
"""

from __future__ import annotations

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size

MODELS = ("llama-3.1-70b", "qwen3-32b", "gemma-3-27b-it", "gpt-oss-120b")


def main() -> None:
    options = SizeOptions(
        contexts=(32768,),
        kv_cache_dtypes=("bf16", "fp8"),
        parallel=Parallel(tp=8),
        gpu=find_gpu("h100"),
    )
    document = size(*map(resolve_model, MODELS), options=options)
    for row in document.rows:
        share = row.kv.allocated_bytes_per_sequence / 2**30
        dtype = row.inputs.kv_cache_dtype
        print(f"{row.model.id:32} {dtype:5} {share:5.2f} GiB a user  {row.fit.max_batch_size:5} users")


if __name__ == "__main__":
    main()
