"""A process of a piece: its cases one after another, each caught, told, and bound in time.

What follows a CUDA error can only fail, so the process ends there with CUDA_LOST; the run starts another, which goes on
behind the cases that have ended.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.journal import DONE, FAILED, LOST, SKIPPED, STARTED, Event, Journal
from tools.gpu.store import Store

CASES_FAILED, CUDA_LOST, NO_DEVICE, INTERRUPTED = 10, 75, 3, 130
PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY = "out of memory"
SIGNS = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS", "CUDNN_STATUS", "cudaError", "device-side assert")

Result = dict[str, Any] | None


class LacksError(Exception):
    """What a case needs is not here; the message says what."""


class NoDeviceError(Exception):
    """There is no card, so that nothing of a run can be; the message is the one line that says so."""


@dataclass(frozen=True)
class Case:
    """`run` gives what is to be kept, as JSON holds it. Past `limit_s` its process ends, with the stack in its log."""

    name: str
    run: Callable[[], Result]
    limit_s: float = 60.0


def run_cases(cases: Iterable[Case], journal: Journal) -> int:
    """Those that have not ended yet; the exit code of the process."""
    behind = journal.ended()
    code = 0
    for case in cases:
        if case.name not in behind:
            code = run_case(case, journal) or code
            if code in (CUDA_LOST, INTERRUPTED, NO_DEVICE):
                break
    return code


def run_case(case: Case, journal: Journal) -> int:
    """0, or the exit code that it asks for."""
    journal.tell(Event(case.name, STARTED))
    start = time.monotonic()

    def tell(state: str, error: BaseException | None = None) -> None:
        told = None if error is None else "".join(traceback.format_exception(error))
        line = None if error is None else f"{type(error).__name__}: {error}"
        journal.tell(Event(case.name, state, time.monotonic() - start, line, told))

    def keep(result: Result) -> None:
        if result:
            journal.store.write(f"{journal.piece}/{file_name(case.name)}.json", json.dumps(result).encode())

    faulthandler.dump_traceback_later(case.limit_s, exit=True)
    try:
        keep(case.run())
        tell(DONE)
    except LacksError as reason:
        tell(SKIPPED, reason)
    except KeyboardInterrupt as error:
        tell(LOST, error)
        return INTERRUPTED
    except BaseException as error:
        with suppress(OSError):
            keep(getattr(error, "result", None))
        tell(FAILED, error)
        return NO_DEVICE if isinstance(error, NoDeviceError) else CUDA_LOST if is_cuda_error(error) else CASES_FAILED
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0


def file_name(case: str) -> str:
    """A case's name as a file can have it."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in case)


def is_cuda_error(error: BaseException) -> bool:
    """Whether it, or one that led to it, leaves the process without its card. Of memory there may be enough again."""
    return any(text_is_cuda_error(f"{type(each).__name__}: {each}") for each in chain(error))


def text_is_cuda_error(text: str) -> bool:
    """The same of what an error said."""
    return OUT_OF_MEMORY not in text and any(sign in text for sign in SIGNS)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def die_with_parent() -> None:
    """A run that is killed leaves nobody behind who holds the card."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(cases: Callable[[argparse.Namespace], Sequence[Case]], arguments: Sequence[str] | None = None) -> int:
    """The main function of a piece's module: `cases` are made of the words behind the store's places."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--spare", type=Path, required=True)
    parser.add_argument("--piece", required=True)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(arguments)
    journal = Journal(Store(given.folder, given.spare), given.piece)
    return run_cases(cases(given), journal)
