"""What the C exporter is made of: names, the arena, the order of axes in memory."""

from __future__ import annotations

import itertools
import math
import re

import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.exporters.c.layout import Stored, collapse, steps, viewed
from intact.exporters.c.memory import Block, largest_live, place_blocks
from intact.exporters.c.names import Names, comment, identifier


@given(st.text())
def test_any_text_gives_an_identifier(text: str) -> None:
    name = identifier(text)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
    assert name not in {"int", "for", "restrict", "inline", "NULL", "main", "int8_t", "INT32_MAX"}


@given(st.lists(st.sampled_from(["a.b", "a_b", "A.B", "a b", "a_b_2", "int", "copy", "größe", "", "1"]), max_size=12))
def test_names_are_all_different(texts: list[str]) -> None:
    names = Names(["copy", "conv2d_s8_s8"])
    found = [names.new(t) for t in texts]
    assert len({f.lower() for f in found}) == len(found)
    assert "copy" not in found


@given(st.text())
def test_a_comment_ends_where_it_should(text: str) -> None:
    plain = comment(text)
    assert (plain.isascii() and plain.isprintable()) or plain == ""
    assert not any(bad in plain for bad in ("*/", "/*", "??", "\\", "\n"))


blocks = st.lists(st.tuples(st.integers(1, 99), st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=20).map(
    lambda rows: {i: Block(size, first, first + more) for i, (size, first, more) in enumerate(rows)})


@given(blocks)
def test_blocks_that_live_together_do_not_overlap(found: dict[int, Block]) -> None:
    offsets, arena = place_blocks(found)
    assert offsets.keys() == found.keys()
    for i in found:
        assert offsets[i] % 4 == 0 and offsets[i] + found[i].size <= arena
        for j in found:
            if i != j and found[i].meets(found[j]):
                assert offsets[i] + found[i].size <= offsets[j] or offsets[j] + found[j].size <= offsets[i]
    assert arena >= largest_live(found.values())


def test_a_chain_takes_two_places() -> None:
    chain = {i: Block(100, i, i + 1) for i in range(9)}
    assert place_blocks(chain)[1] == largest_live(chain.values()) == 200
    assert place_blocks({}) == ({}, 0)


shapes = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)


@given(shapes, st.data())
def test_views_are_the_same_memory(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    total = math.prod(shape)
    others = [[total], [1, total], *[[d, total // d] for d in range(1, total + 1) if total % d == 0],
              *[[d, total // d, 1] for d in range(1, total + 1) if total % d == 0], shape]
    target = data.draw(st.sampled_from(others))
    memory = torch.arange(total)
    x = Stored(0, tuple(shape), tuple(order), "s8")
    logical = memory.as_strided(shape, steps(shape, order))
    assert x.steps == steps(shape, order) and x.plain == torch.equal(logical.reshape(-1), memory)
    found = viewed(x, target)
    want = logical.reshape(target)
    if found is not None:
        assert sorted(found) == list(range(len(target)))
        assert torch.equal(memory.as_strided(target, steps(target, found)), want)
    else:
        assert not any(torch.equal(memory.as_strided(target, steps(target, o)), want)
                       for o in itertools.permutations(range(len(target))))


@given(shapes, st.data())
def test_collapsed_axes_walk_the_same_elements(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    table = [0 if data.draw(st.booleans()) else s for s in steps(shape, order)]
    sizes, (found, plain) = collapse(shape, table, steps(shape, range(len(shape))))
    memory = torch.arange(math.prod(shape))
    assert torch.equal(memory.as_strided(sizes, found).reshape(-1), memory.as_strided(shape, table).reshape(-1))
    assert torch.equal(memory.as_strided(sizes, plain).reshape(-1), memory)
