"""Timings of what must be fast, beside the bare cost that bounds it and what other libraries take: `explorer bench`.

    rows = run(["frechet"], runs=7)
    save(rows, "bench.json")

A row's name begins with its family: solver-overhead, frechet, live, train. Rows ending in -cuda exist where there is a GPU.
"""

from explorer.bench.rows import Row, document, save
from explorer.bench.suite import families, names, run

__all__ = ["Row", "document", "families", "names", "run", "save"]
