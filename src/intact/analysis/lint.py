"""What in a report deserves attention, said in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from intact.analysis.report import Finding, Latency, Problem, Site, Sizes
from intact.engine import QModel

__all__ = ["CLIPPED_SHARE", "LOW_DB", "lint"]

#: below this an edge carries little of its signal
LOW_DB = 10.0
#: above this, saturation is no rare outlier
CLIPPED_SHARE = 0.01


def lint(
    q: QModel, sites: Sequence[Site], latency: Latency | None = None, sizes: Sizes | None = None
) -> tuple[Finding, ...]:
    """Findings in order of execution; of the whole model last.

    Args:
        q: the integer model.
        sites: its quantized edges.
        latency: if it was measured.
        sizes: if they were measured.
    """
    by_edge = {s.edge: s for s in sites}
    found = [finding for site in sites for finding in (*_shared_scale(q, by_edge, site), *_edge(site))]
    if latency is not None and latency.ratio > 1.0:
        found.append(Finding(Problem.SLOWER, "", "", f"the integer model takes {latency.ratio:.2f}x the time of the "
                             f"float model on {latency.engine}; layers this small, or left in float, gain nothing"))
    if sizes is not None and sizes.ratio > 1.0:
        found.append(Finding(Problem.LARGER, "", "", f"the integer model's file has {sizes.ratio:.2f}x the bytes"))
    return tuple(found)


def _edge(site: Site) -> Iterator[Finding]:
    if site.total.noise_rms and site.total.signal_rms and site.total.sqnr_db < LOW_DB:
        yield Finding(Problem.LOW_SQNR, site.where, site.edge,
                      f"SQNR {site.total} dB is below {LOW_DB:g} dB ({site.added} dB added here)")
    if site.clipped > CLIPPED_SHARE:
        yield Finding(Problem.CLIPPED, site.where, site.edge,
                      f"{site.clipped:.1%} of the values, in [{site.low:.4g}, {site.high:.4g}], are clipped to "
                      f"[{site.code_low:.4g}, {site.code_high:.4g}]; calibrate with more like data, or with 'minmax'")
    if site.low == site.high and site.op != "constant":
        yield Finding(Problem.CONSTANT, site.where, site.edge,
                      f"every value is {site.low:.4g}; the layer does nothing, or the data does not reach it")


def _shared_scale(q: QModel, sites: Mapping[str, Site], site: Site) -> Iterator[Finding]:
    """A concatenation has one scale: operands that are tiny beside the largest one get hardly any codes."""
    if site.op != "concat" or not site.integer:
        return
    operands = [sites[name] for name in q.graph[site.edge].inputs if name in sites]
    spans = {s.edge: max(s.high, 0.0) - min(s.low, 0.0) for s in operands}
    largest, limit = max(spans.values(), default=0.0), 2.0 ** (q.qparams[site.edge].qtype.bits - 2)
    for s in operands:
        if 0.0 < spans[s.edge] * limit < largest:
            yield Finding(Problem.SHARED_SCALE, site.where, site.edge,
                          f"operand {s.where} has a range of {spans[s.edge]:.3g} and shares one scale with a range of "
                          f"{largest:.3g}; leave the concatenation in float")
