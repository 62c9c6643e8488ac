"""What vLLM leaves for its cache on a card: its share of the memory less weights, activations, runtime and graphs.

pool = utilisation x total - weights - activations - what torch does not see - CUDA graphs, the last since 0.20
(v1/worker/gpu_worker.py: determine_available_memory). Constants are fitted where they are so called: to the 42 starts
of 0.19 and the two of 0.16 and 0.17, on H100s, in examples/accuracy/starts.csv.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.sizing.engines.estimates import Estimate, Estimates
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.activations import Profile, activation_bytes, profile
from kvtool.sizing.engines.vllm.images import items
from kvtool.sizing.engines.vllm.inputs import capability_of, served_model
from kvtool.sizing.engines.vllm.loaded import beside_weights
from kvtool.sizing.engines.vllm.rules import TRITON, VllmRules
from kvtool.sizing.engines.vllm.versions import rules_of
from kvtool.sizing.fit import BatchLimits
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.weights import Weights
from kvtool.units import GIB

HOPPER = 90
MEASURED_RELEASES = ("0.16", "0.17", "0.19")
# Worst of the 44 starts; by what the tensors of the second runner, which no start here measures, may be off.
ACTIVATION_ERROR, UNMEASURED_ACTIVATION_ERROR = 0.04, 0.25
# GiB outside of torch, fitted: on one GPU, on one GPU before graphs were profiled, and on a pipeline stage.
RUNTIME_GIB, RUNTIME_WITHOUT_GRAPHS_GIB, RUNTIME_OF_STAGE_GIB = 0.25, 0.13, 0.07
# Fitted to 8 starts on H100s with NVLink: buffers of the fused and the symmetric all-reduce. Before Hopper there are
# none of these: 0.12 GiB more on 2 A100s (vLLM 0.10, one model).
ALL_REDUCE_GIB, WIDE_ALL_REDUCE_GIB, OLD_ALL_REDUCE_GIB = 1.83, 1.93, 0.12
# Fitted to two starts of one vocabulary: rows of logits that do not begin at a multiple of 16 bytes.
UNALIGNED_ROWS_GIB = 0.21
RUNTIME_ERROR_GIB, ALL_REDUCE_ERROR_GIB, UNMEASURED_RUNTIME_ERROR_GIB = 0.02, 0.06, 0.25
# Fitted by least squares to vLLM's own estimates of 42 starts: GiB for each layer of a stage, 1,024 of the hidden size,
# tensor parallelism, and experts.
GRAPHS_GIB, GRAPHS_LAYER_GIB, GRAPHS_HIDDEN_GIB, GRAPHS_TP_GIB, GRAPHS_MOE_GIB = 0.15, 0.0057, 0.11, 0.25, 0.87
GRAPHS_ERROR_GIB, LEAST_GRAPHS_ERROR_GIB = 0.67, 0.25  # of 5 graphs of a Gemma a log has 0.26 GiB
# The starts captured 51 sizes twice, for mixed batches and for decodes; the estimate is that of a graph times as many.
# The second runner captures all of the former, which share a pool (fitted to two starts), and extrapolates the latter.
FITTED_GRAPHS, SHARED_GRAPHS_GIB = 102, 0.15
WIDEST_GRAPH_TOKENS = 512
# Of the card: what the margin takes at most for a release that is not known, so that an answer stays one.
UNNAMED_SHARE = 0.025


def estimates(
    weights: Weights, gpu: Gpu, options: EngineOptions, limits: BatchLimits, *, max_model_len: int
) -> Estimates:
    """Every term of the fullest rank but the weights, by the rules of the release asked for."""
    return stage_estimates(weights, gpu, options, limits, max_model_len=max_model_len, last_stage=True)


def stage_estimates(
    weights: Weights, gpu: Gpu, options: EngineOptions, limits: BatchLimits, *, max_model_len: int, last_stage: bool
) -> Estimates:
    """The terms of a rank of the last pipeline stage, which samples, or of one before it."""
    model, rules = weights.model, rules_of(options)
    run = profile(
        served_model(model, options.dtype),
        gpu,
        options.parallel,
        rules=rules,
        tokens=limits.tokens,
        sequences=limits.sequences,
        max_model_len=max_model_len,
        capability=capability_of(gpu),
        drafted=options.num_speculative_tokens > 0,
        images=options.profiles_images,
    )
    return Estimates(
        activation=_activation(run, options, last_stage=last_stage),
        runtime=_runtime(run, gpu),
        graphs=_graphs(run, gpu, options),
        beside_weights=beside_weights(
            replace(weights, model=run.model),
            options.parallel,
            run.capability,
            rules,
            eager=not options.cuda_graphs,
        ),
    )


def _activation(run: Profile, options: EngineOptions, *, last_stage: bool) -> Estimate:
    measured = not run.second_runner and options.is_of(MEASURED_RELEASES)
    size = activation_bytes(run, last_stage=last_stage)
    error = ACTIVATION_ERROR if measured else UNMEASURED_ACTIVATION_ERROR
    checked = "the worst of the starts it was held against" if measured else "no start of this release was measured"
    sampled = f"{run.sequences:,} sequences x {run.model.vocab_size or 0:,} logits of {_sampler_words(run)}"
    images = ""
    if run.images is not None:
        images = f", {items(run.images, run.tokens)} images or videos of {run.images.tokens:,} tokens"
    return Estimate(
        bytes=size,
        margin_bytes=round(error * size),
        text=(
            f"activations are those of vLLM's profile run, tensor by tensor: {run.tokens:,} batched tokens, {sampled}"
            f"{images}; good to {error:.0%}: {checked}"
        ),
    )


def _sampler_words(run: Profile) -> str:
    return "the greedy dummy run" if run.second_runner else f"the {run.rules.sampler} sampler"


def _runtime(run: Profile, gpu: Gpu) -> Estimate:
    """Kernels, their local memory and the buffers of collectives, as fitted."""
    parallel, rules = run.parallel, run.rules
    size_gib = RUNTIME_GIB if rules.graphs_profiled else RUNTIME_WITHOUT_GRAPHS_GIB
    error_gib, fitted = RUNTIME_ERROR_GIB, "fitted to 36 starts on one H100"
    if parallel.tp > 1:
        buffers_gib, error_gib, fitted = _all_reduce(parallel, rules, gpu)
        size_gib += buffers_gib
    elif parallel.pp > 1:
        size_gib, fitted = RUNTIME_OF_STAGE_GIB, "fitted to one start of two stages"
    if rules.sampler == TRITON and (run.model.vocab_size or 0) % 4:
        size_gib += UNALIGNED_ROWS_GIB
        fitted += ", and rows of logits that are not aligned to two"
    if run.capability != HOPPER:
        error_gib, fitted = max(error_gib, UNMEASURED_RUNTIME_ERROR_GIB), f"{fitted}, not on this card"
    return Estimate(
        bytes=round(size_gib * GIB),
        margin_bytes=round(error_gib * GIB),
        text=f"{size_gib:.2f} GiB outside of torch, {fitted}, good to {error_gib:.2f} GiB",
    )


def _all_reduce(parallel: Parallel, rules: VllmRules, gpu: Gpu) -> tuple[float, float, str]:
    """(GiB, error, what it was fitted to) of the buffers of tensor parallelism."""
    if rules.graphs_profiled and (capability_of(gpu) or 0) >= HOPPER and gpu.link_gbps is not None:
        size_gib = ALL_REDUCE_GIB if parallel.tp == 2 else WIDE_ALL_REDUCE_GIB
        return size_gib, ALL_REDUCE_ERROR_GIB, "fitted to 8 starts on 2 and 4 H100s"
    return OLD_ALL_REDUCE_GIB, UNMEASURED_RUNTIME_ERROR_GIB, "fitted to one model on 2 A100s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """How many CUDA graphs a start captures of mixed batches and of decodes (VllmConfig._set_cudagraph_sizes), and
    whether the second runner does.
    """

    mixed: int
    decodes: int
    second_runner: bool = False

    @property
    def share(self) -> float:
        """Those that are extrapolated, of as many as the starts had."""
        return (self.decodes if self.second_runner else self.mixed + self.decodes) / FITTED_GRAPHS


def captured(limits: BatchLimits, *, drafted: int = 0, second_runner: bool = False) -> Graphs:
    """1, 2, 4, then every 8th size below 256 and every 16th from there on: up to twice what the sequences decode."""
    decoded = limits.sequences * (1 + drafted)
    widest = min(2 * decoded, WIDEST_GRAPH_TOKENS, limits.tokens)
    sizes = [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, widest + 1, 16)) if size <= widest]
    decodes = sum(size <= decoded for size in sizes)
    return Graphs(mixed=len(sizes), decodes=decodes, second_runner=second_runner)


def graphs_bytes(model: Model, parallel: Parallel, graphs: Graphs) -> int:
    """What vLLM estimates for the CUDA graphs of a rank, whether or not it takes that off the pool."""
    size_gib = GRAPHS_GIB + GRAPHS_LAYER_GIB * model.num_layers / parallel.pp
    size_gib += GRAPHS_HIDDEN_GIB * model.hidden_size / 1024
    size_gib += GRAPHS_TP_GIB * (parallel.tp > 1) + GRAPHS_MOE_GIB * (model.moe is not None)
    return round((size_gib * graphs.share + SHARED_GRAPHS_GIB * graphs.second_runner) * GIB)


def _graphs(run: Profile, gpu: Gpu, options: EngineOptions) -> Estimate:
    """vLLM's estimate of its CUDA graphs, where it takes that off the pool."""
    rules, eager = run.rules, not options.cuda_graphs
    if eager or not rules.graphs_subtracted or (run.second_runner and not rules.second_runner_graphs):
        why = "without CUDA graphs" if eager else "this release takes nothing off the pool for CUDA graphs"
        return Estimate(bytes=0, margin_bytes=0, text=why)
    limits = BatchLimits(tokens=run.tokens, sequences=run.sequences)
    graphs = captured(limits, drafted=options.num_speculative_tokens, second_runner=run.second_runner)
    size = graphs_bytes(run.model, run.parallel, graphs)
    error = round(max(LEAST_GRAPHS_ERROR_GIB, GRAPHS_ERROR_GIB * graphs.share) * GIB)
    fitted = "fitted to the estimates that vLLM 0.19 made of 42 starts"
    if run.second_runner:
        fitted += " and the second runner of two"
    unnamed = min(size, round(UNNAMED_SHARE * gpu.memory_bytes))
    if options.version is None and unnamed > error:
        error, fitted = unnamed, f"{fitted}, which releases before 0.20 do not take off and no release was named"
    return Estimate(
        bytes=size,
        margin_bytes=error,
        text=(
            f"{size / GIB:.2f} GiB for {graphs.mixed} + {graphs.decodes} CUDA graphs, {fitted}, good to "
            f"{error / GIB:.2f} GiB"
        ),
    )
