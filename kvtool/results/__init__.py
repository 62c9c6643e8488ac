"""The result documents, typed and versioned: what `--json` prints, `--out` writes, `compare` and `report` read.

All keys are always present; bytes and tokens are ints; times carry their unit in their name; no NaN, no Infinity.
"""

from __future__ import annotations

from kvtool.results.bench import (
    BenchDocument,
    BenchPeer,
    Case,
    Check,
    ColdStart,
    Memory,
    Metrics,
    PeerTurn,
    Power,
    Prefix,
    Roofline,
    Sample,
    StepBytes,
)
from kvtool.results.calibration import Calibration, read_calibration
from kvtool.results.compare import CompareDocument, CompareRow, MatrixDocument, MatrixRefused
from kvtool.results.document import Struct, encode, read_document
from kvtool.results.env import EnvDocument
from kvtool.results.generate import GenerateDocument, GeneratedSequence
from kvtool.results.kernels import (
    KernelBytes,
    KernelCase,
    KernelCheck,
    KernelColdStart,
    KernelMemory,
    KernelMetrics,
    KernelPeer,
    KernelRoofline,
    KernelsDocument,
)
from kvtool.results.size import (
    ENGINE_NAMES,
    SizeDecode,
    SizeDocument,
    SizeEngine,
    SizeFit,
    SizeInputs,
    SizeKv,
    SizeLayers,
    SizeLengths,
    SizeModel,
    SizeRejected,
    SizeRow,
    SizeSetting,
    SizeSharing,
    SizeSolution,
    SizeTier,
    SizeWeights,
)
from kvtool.results.summary import Summary, summarise
from kvtool.results.verify import VerifyDocument, VerifyEngine, VerifyRefusal, VerifyRow

__all__ = [
    "ENGINE_NAMES",
    "BenchDocument",
    "BenchPeer",
    "Calibration",
    "Case",
    "Check",
    "ColdStart",
    "CompareDocument",
    "CompareRow",
    "EnvDocument",
    "GenerateDocument",
    "GeneratedSequence",
    "KernelBytes",
    "KernelCase",
    "KernelCheck",
    "KernelColdStart",
    "KernelMemory",
    "KernelMetrics",
    "KernelPeer",
    "KernelRoofline",
    "KernelsDocument",
    "MatrixDocument",
    "MatrixRefused",
    "Memory",
    "Metrics",
    "PeerTurn",
    "Power",
    "Prefix",
    "Roofline",
    "Sample",
    "SizeDecode",
    "SizeDocument",
    "SizeEngine",
    "SizeFit",
    "SizeInputs",
    "SizeKv",
    "SizeLayers",
    "SizeLengths",
    "SizeModel",
    "SizeRejected",
    "SizeRow",
    "SizeSetting",
    "SizeSharing",
    "SizeSolution",
    "SizeTier",
    "SizeWeights",
    "StepBytes",
    "Struct",
    "Summary",
    "VerifyDocument",
    "VerifyEngine",
    "VerifyRefusal",
    "VerifyRow",
    "encode",
    "read_calibration",
    "read_document",
    "summarise",
]
