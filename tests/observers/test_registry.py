from __future__ import annotations

import pytest

from intact.errors import PlanError
from intact.observers import OBSERVERS, MinMax, Percentile, make_observer, register_observer


def test_the_names() -> None:
    assert {"minmax", "moving_average", "mse", "percentile", "entropy"} <= OBSERVERS.keys()


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"percentil.*nearest: percentile"):
        make_observer("percentil")
    with pytest.raises(PlanError, match="entropy, minmax"):
        make_observer("zzz")


def test_a_user_registers_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OBSERVERS, "mine", raising=False)
    register_observer("mine", lambda: Percentile(99.0))
    try:
        assert make_observer("mine").config == (4096, 99.0)
        with pytest.raises(PlanError, match="taken"):
            register_observer("mine", MinMax)
    finally:
        del OBSERVERS["mine"]
    with pytest.raises(PlanError, match="not a factory"):
        register_observer("mine", lambda: 3)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.1])
def test_settings_are_checked(percent: float) -> None:
    with pytest.raises(PlanError, match="percentile"):
        Percentile(percent)
