"""What a page's K/V depends on beside its tokens: two runs of the same identity may share their pages."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from kvtool.cache.tiers.keys import fingerprint
from kvtool.engine.loaded import LoadedModel
from kvtool.units import KIB

LAYOUT_VERSION = 1  # of a block: the tensors of each layer in the order of `Pages.tensors`
SAMPLES, SAMPLE_BYTES = 64, 4 * KIB


def run_identity(loaded: LoadedModel) -> bytes:
    """Of model, weights, dtypes, pages and what computes them: rounding differs between devices and back ends."""
    model = replace(loaded.model, source="", notes=None, confidence=None, assumed=(), params_source=None)
    return fingerprint(
        LAYOUT_VERSION,
        model,
        weights_identity(loaded.config.weights, loaded.config.seed),
        loaded.dtype,
        loaded.cache_format.name,
        loaded.config.block_size,
        loaded.device.type,
        loaded.backend,
    )


def weights_identity(weights: str, seed: int) -> str:
    """Of random weights their seed; of files each one's name, size, time of writing and 64 samples of 4 KiB."""
    if weights == "random":
        return f"random {seed}"
    path = Path(weights)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = blake2b(digest_size=16)
    for file in files:
        if file.suffix in (".safetensors", ".gguf", ".json") and file.is_file():
            _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: blake2b, path: Path) -> None:
    facts = path.stat()
    digest.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(facts.st_size * sample // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
