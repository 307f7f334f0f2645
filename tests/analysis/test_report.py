"""A report as data, as JSON and as text."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from intact.analysis import Error, Finding, Latency, Metric, Output, Problem, Report, Site, Sizes

FINE, EXACT, LOST = Error(30.0, 0.1, 3.2), Error(math.inf, 0.0, 1.0), Error(-math.inf, 0.5, 0.0)


def site(edge: str, added: Error, **changes: object) -> Site:
    made = Site(edge, f"net.{edge}", "conv", True, FINE, FINE, added, FINE, FINE, 0.0, 0.25, -1.0, 2.0, -1.5, 2.5)
    return replace(made, **changes)


def report() -> Report:
    sites = (site("exact", EXACT), site("lost", LOST), site("poor", Error(3.0, 1.0, 1.4)), site("fine", FINE),
             site("x", Error(1.0, 1.0, 1.1), op="input", path="", integer=False))
    return Report("onnxruntime", 8, 8, (Output("", "fine", FINE, 0.999, 0.5),), sites,
                  (Finding(Problem.CLIPPED, "net.poor", "poor", "much is clipped"),),
                  Metric("top-1 accuracy", 0.75, 0.5), Latency(4.0, 1.0, "onnxruntime"), Sizes(400, 100), 0.875)


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def test_json_is_valid_versioned_stable_and_the_data_itself() -> None:
    text = report().to_json()
    found = json.loads(text, parse_constant=refuse)
    assert found == report().as_dict()
    assert text == report().to_json()
    assert (found["format"], found["format_version"]) == ("intact.report", 1)
    assert found["metric"] == {"name": "top-1 accuracy", "float": 0.75, "integer": 0.5, "difference": -0.25}
    assert (found["latency"]["ratio"], found["sizes"]["ratio"], found["agreement"]) == (0.25, 0.25, 0.5)
    assert found["findings"] == [
        {"problem": "clipped", "where": "net.poor", "edge": "poor", "message": "much is clipped"}]


def test_infinite_ratios_are_null_and_told_apart() -> None:
    by_edge = {s["edge"]: s["added"] for s in json.loads(report().to_json())["sites"]}
    assert by_edge["exact"] == {"sqnr_db": None, "noise_rms": 0.0, "signal_rms": 1.0}
    assert by_edge["lost"] == {"sqnr_db": None, "noise_rms": 0.5, "signal_rms": 0.0}
    assert Error(-math.inf, math.inf, 1.0).as_dict() == {"sqnr_db": None, "noise_rms": None, "signal_rms": 1.0}


def test_json_without_what_was_not_measured() -> None:
    bare = replace(report(), metric=None, latency=None, sizes=None, integer_macs=None, outputs=(), sites=(),
                   findings=())
    found = json.loads(bare.to_json(), parse_constant=refuse)
    assert [found[k] for k in ("metric", "latency", "sizes", "integer_macs", "agreement")] == [None] * 5
    assert set(found) == set(report().as_dict())


def test_ranking_has_measured_errors_first_and_exact_ones_last() -> None:
    assert [s.edge for s in report().worst] == ["x", "poor", "fine", "lost", "exact"]
    # an input cannot be kept in float, and what is exact need not be
    assert report().keep_float() == ("net.poor", "net.fine", "net.lost")
    assert report().keep_float(1) == ("net.poor",)


def test_sites_by_edge_and_by_path() -> None:
    assert report().site("poor") is not None
    assert report().site("net.poor") == report().site("poor")
    with pytest.raises(KeyError, match="nowhere"):
        report().site("nowhere")


def test_print_has_aligned_columns_and_every_part() -> None:
    text = str(report())
    for part in ("top-1 accuracy", "(-0.2500)", "0.25x", "same argmax in 50.00%", "87.5% of multiply-accumulates",
                 "exact", "no signal", "clipped: net.poor: much is clipped", "Keep in float first: net.poor"):
        assert part in text
    lines = text.splitlines()
    head = next(line for line in lines if line.strip().startswith("module"))
    rows = lines[lines.index(head) + 1 :][: len(report().sites)]
    assert len({row.index("[-1, 2]") for row in rows}) == 1
    assert all(row.startswith("    ") and row == row.rstrip() for row in rows)


def test_a_long_list_of_findings_is_cut_in_print_only() -> None:
    many = replace(report(), findings=report().findings * 50)
    assert "and 38 more" in str(many)
    assert len(json.loads(many.to_json())["findings"]) == 50
