"""Counts where LiteRT's kernels differ from their NumPy specification (intact.reference.litert), as JSON.

    python benchmarks/bench_litert_arithmetic.py [--files 60] [--size 20011] [--only CONV]

Each file is one operator of random shape, encoding and data, a quarter to a half of them with scales that make ties.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.exporters.litert_cases import CASES, SETS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--size", type=int, default=20_011)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    for name, case in CASES.items():
        if options.only not in name:
            continue
        row: dict[str, object] = {"case": name}
        for kernels in SETS:
            differ = outputs = 0
            for seed in range(1000, 1000 + options.files):  # other seeds than the tests'
                got, want = case(np.random.default_rng([zlib.crc32(name.encode()), seed]), options.size, kernels)
                differ, outputs = differ + int(np.count_nonzero(got != want)), outputs + got.size
            row |= {kernels: differ, "outputs": outputs}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
