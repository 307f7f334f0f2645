"""What the benchmarks share: arguments, data, clocks, and the JSON object that each of them prints."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from tests.zoo import ZOO  # noqa: E402

torch.set_num_threads(1)
Json = dict[str, Any]
Clock = Callable[[], float]


def arguments(
    description: str | None, add: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The options of every benchmark, and its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer networks, samples and repeats")
    if add is not None:
        add(parser)
    return parser.parse_args()


def network(name: str) -> torch.nn.Module:
    """A full-size network in evaluation mode."""
    entry = ZOO[name]
    assert entry.full is not None
    return entry.full().eval()


def shape(name: str) -> tuple[int, ...]:
    """Shape of one input of the full-size network."""
    found = ZOO[name].full_input_shape
    assert found is not None
    return found


def images(count: int, size: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Smooth noise of about unit variance, without touching the global random state."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(1, s // 8) for s in size[1:]]
    small = torch.randn(count, size[0], *coarse, generator=generator)
    if len(size) == 3:
        small = torch.nn.functional.interpolate(small, size=tuple(size[1:]), mode="bilinear", align_corners=False)
    elif len(size) == 2:
        small = torch.nn.functional.interpolate(small, size=size[1], mode="linear", align_corners=False)
    return small + 0.3 * torch.randn(count, *size, generator=generator)


def interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, *, warmup: int = 1, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every run, in turns, so that a busy machine disturbs all alike.

    The order within a turn is drawn anew each time: what ran before decides what the caches hold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    draw = random.Random(0)
    for turn in range(warmup + repeats):
        for name in draw.sample(list(runs), len(runs)):
            start = clock()
            runs[name]()
            spent = clock() - start
            if turn >= warmup:
                seconds[name].append(spent)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios within each turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats to significant digits, through dicts and lists."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return value


def environment() -> Json:
    """Machine and versions."""
    import numpy
    import onnx
    import onnxruntime

    import intact

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    flags = torch.backends.cpu.get_cpu_capability()
    return {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "isa": flags, "load": round(os.getloadavg()[0], 2),
                    "system": platform.platform(), "threads": torch.get_num_threads()},
        "versions": {"intact": getattr(intact, "__version__", "?"), "numpy": numpy.__version__,
                     "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
                     "python": platform.python_version(), "torch": torch.__version__},
    }


def small_pages() -> None:
    """No transparent huge pages in this process (Linux): with them resident sizes jump by 2 MiB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)


def reset_peak() -> None:
    """Start a new peak of the resident size (Linux; elsewhere the peak is that of the whole process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Largest resident size of this process since :func:`reset_peak`, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def emit(name: str, settings: Json, results: Json, targets: Json) -> None:
    """Print the one JSON object of a benchmark. ``targets`` maps a name to (value, limit)."""
    judged = {k: {"value": v, "limit": limit, "met": v <= limit} for k, (v, limit) in targets.items()}
    report = {"benchmark": name, "format": 1, "settings": settings, **environment(), "results": results,
              "targets": judged}
    print(json.dumps(rounded(report), indent=2, sort_keys=True))


def log(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of a block to ``into[name]``."""
    start = time.process_time()
    yield
    into[name] = into.get(name, 0.0) + time.process_time() - start
