"""What in a report deserves attention, said in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from intact.analysis.report import Finding, Latency, Problem, Site, Sizes
from intact.engine import QModel
from intact.kernels import MOVES

__all__ = ["CLIPPED_SHARE", "LOW_DB", "SLOWER_RATIO", "lint"]

#: below this an edge carries little of its signal
LOW_DB = 10.0
#: above this, saturation is no rare outlier
CLIPPED_SHARE = 0.01
#: measured times of one model differ by less than this
SLOWER_RATIO = 1.1
_MOST = 0.9  # of the multiply-accumulates in integers: what is left does not decide
_SMALL_MACS = 1_000_000


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
    if latency is not None and latency.ratio > SLOWER_RATIO:
        found.append(Finding(Problem.SLOWER, "", "", f"the integer model takes {latency.ratio:.2f}x the time of the "
                             f"float model on {latency.engine}{_why_slower(q)}"))
    if sizes is not None and sizes.ratio > 1.0:
        found.append(Finding(Problem.LARGER, "", "", f"the integer model's file has {sizes.ratio:.2f}x the bytes"))
    return tuple(found)


def _why_slower(q: QModel) -> str:
    """The likeliest reason, from what is known about the model."""
    cover = q.info.get("coverage") or {}
    total, integer = cover.get("macs", 0), cover.get("integer_macs", 0)
    if not total:
        return "; nothing in it multiplies, and only that gets faster"
    if integer < _MOST * total:
        return f"; {1 - integer / total:.0%} of its multiply-accumulates stay in float, and converting to codes and " \
               "back costs time: see q.plan for the reasons"
    if total < _SMALL_MACS:
        return f"; with {total:,} multiply-accumulates a sample, calling kernels and converting inputs and outputs " \
               "costs more than integers save"
    inside = [n for n in q.graph if n.name not in q.bindings and n.op not in ("input", "constant")
              and any(i in q.bindings for i in n.inputs)]
    if inside:
        return f"; {len(inside)} operation(s) between its integer layers stay in float, first " \
               f"'{inside[0].path or inside[0].name}' ({inside[0].op}): each converts codes to floats and back"
    light = [n.op for n in q.graph if n.name in q.bindings and not q.target.rules[n.op].kernel and n.op not in MOVES]
    if light:
        most = max(sorted(set(light)), key=light.count)
        return f"; {len(light)} operation(s), most of them {most}, have no integer kernel in this runtime and are " \
               "computed around it"
    return "; all of it runs in integers, so this machine's integer kernels are no faster than its float ones"


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
