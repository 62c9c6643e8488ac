"""Who does the many parts of a sweep: this process, every core of this machine, or a Ray cluster, through joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from kvtool.system.errors import KvtoolError

WORTH_S = 1.0  # joblib takes a good part of it to import and to start

Part = TypeVar("Part")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Workers:
    """`jobs` as joblib's n_jobs: -1 is every core. `address` is that of a Ray cluster: `auto` the one that this machine
    belongs to, `local` one of this machine's cores for the time being, else HOST:PORT or ray://HOST:PORT.
    """

    jobs: int = -1
    address: str | None = None

    def map(
        self, call: Callable[[Part], Found], parts: Sequence[Part], *, work_s: float, threads: bool = False
    ) -> list[Found]:
        """What `call` gives for each part, in order; all of them take about `work_s` of one core, in threads where the
        call lets others run meanwhile. Raises KvtoolError for a Ray cluster that is not there.
        """
        if self.address is None and (self.jobs == 1 or len(parts) < 2 or work_s < WORTH_S):
            return [call(part) for part in parts]
        from joblib import Parallel, delayed

        if self.address is None:
            run = Parallel(n_jobs=self.jobs, prefer="threads" if threads else "processes")
            return list(run(delayed(call)(part) for part in parts))
        with ray_cluster(self.address, self.jobs):
            return list(Parallel(n_jobs=self.jobs)(delayed(call)(part) for part in parts))


@contextmanager
def ray_cluster(address: str, jobs: int) -> Iterator[None]:
    """joblib's work goes to the cluster. Raises KvtoolError without Ray, and where no cluster answers."""
    try:
        import ray
        from joblib import parallel_config
        from ray.util.joblib import register_ray
    except ModuleNotFoundError as error:
        raise KvtoolError("--cluster-address needs Ray: pip install 'kvtool[cluster]'") from error
    own = {"num_cpus": jobs if jobs > 0 else None, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        told = str(error).strip().splitlines()
        raise KvtoolError(
            f"--cluster-address {address}: no Ray cluster answers there ({told[0] if told else type(error).__name__})"
        ) from error
    try:
        register_ray()
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()
