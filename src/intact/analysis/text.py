"""A report as aligned text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from intact.kernels import MOVES

if TYPE_CHECKING:
    from intact.analysis.report import Error, Report, Site

__all__ = ["render", "table"]

_SHOWN = 5  # of the worst layers
_FINDINGS = 12
_WIDEST = 44  # characters of a module path


def render(report: Report) -> str:
    """The whole report, a line or more for each part of it."""
    lines = [f"Intact report: target '{report.target}', {report.samples} samples", *_summary(report), "",
             "  Layers: SQNR in dB against the float model, higher is better (total: in the whole net; own: this layer",
             f"  alone; added: own, without what quantized inputs bring{_of(report)})", *_layers(report.sites)]
    worst = [s for s in report.worst if s.added.noise_rms][:_SHOWN]
    if worst:
        lines += ["", "  Worst first, by the error that a layer itself adds:"]
        lines += table([(f"{i}.", s.where, s.op, f"{s.added} dB", _cause(s)) for i, s in enumerate(worst, 1)], "rlll")
        lines.append(f"  Keep in float first: {', '.join(report.keep_float(_SHOWN)) or 'nothing'}")
    lines += ["", f"  Findings ({len(report.findings)}):"]
    lines += [f"    {f.problem.value}: {f}" for f in report.findings[:_FINDINGS]] or ["    none"]
    if len(report.findings) > _FINDINGS:
        lines.append(f"    and {len(report.findings) - _FINDINGS} more in report.findings")
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Rows as lines with aligned columns; ``align`` has 'l' or 'r' for each, the last one repeated.

    >>> table([("a", "1.0"), ("bcd", "10.0")], "lr")
    ['    a     1.0', '    bcd  10.0']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    return ["    " + "  ".join(cell.ljust(w) if side == "l" else cell.rjust(w)
                               for cell, w, side in zip(row, widths, sides, strict=True)).rstrip() for row in rows]


def _of(report: Report) -> str:
    return "" if report.own_samples == report.samples else f"; the last two from {report.own_samples} samples"


def _summary(report: Report) -> Iterator[str]:
    rows: list[tuple[str, str]] = []
    m = report.metric
    if m is not None:
        rows.append((m.name, f"float {m.float_value:.4f}, integer {m.integer_value:.4f} ({m.difference:+.4f})"))
    for o in report.outputs:
        agreement = "" if o.agreement is None else f", same argmax in {o.agreement:.2%} of samples"
        rows.append((f"output {o.name}".rstrip(), f"SQNR {_db(o.error)}, cosine {o.cosine:.6f}{agreement}"))
    if report.integer_macs is not None:
        rows.append(("in integers", f"{report.integer_macs:.1%} of multiply-accumulates"))
    s, t = report.sizes, report.latency
    if s is not None:
        rows.append(("size", f"float {s.float_bytes:,} bytes, integer {s.integer_bytes:,} bytes ({s.ratio:.2f}x)"))
    if t is not None:
        rows.append(("latency", f"float {t.float_ms:.3f} ms, integer {t.integer_ms:.3f} ms ({t.ratio:.2f}x), "
                                f"{t.engine}"))
    yield from (line[2:] for line in table(rows, "l"))


def _layers(sites: Sequence[Site]) -> list[str]:
    head = ("module", "edge", "op", "total", "own", "added", "weight", "activ.", "clipped", "dead", "range")
    rows = [head]
    for s in sites:
        if s.integer and s.op in MOVES:
            continue
        op = s.op if s.integer or s.op in ("input", "constant") else f"float {s.op}"
        rows.append((_short(s.path or "-"), s.edge, op, str(s.total), str(s.own), str(s.added),
                     "" if s.weight is None else str(s.weight), "" if s.activation is None else str(s.activation),
                     _share(s.clipped), _share(s.dead), f"[{s.low:.3g}, {s.high:.3g}]"))
    return table(rows, "lllrrrrrrrl")


def _cause(s: Site) -> str:
    """The larger of the contributions."""
    if s.clipped > 0.01:
        return f"{s.clipped:.1%} clipped"
    if s.weight is None or s.activation is None:
        return "rounding" if s.integer else "quantized here"
    return "weights" if s.weight.severity < s.activation.severity else "activations"


def _db(error: Error) -> str:
    return str(error) if error.noise_rms == 0.0 or error.signal_rms == 0.0 else f"{error} dB"


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.2%}" if share else "0"


def _short(path: str) -> str:
    return path if len(path) <= _WIDEST else "..." + path[3 - _WIDEST :]
