"""Every example runs in its small size, and gives what it promises."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import intact

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem not in ("common", "networks"))


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def small(out: Path, *more: str) -> list[str]:
    return ["--small", "--images", "384", "--out", str(out), *more]


def test_vgg16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = script("vgg16_step_by_step", monkeypatch).main(small(tmp_path))
    assert found["q"] == found["qfloat"]
    assert found["codes_differ"] == 0
    statistics = json.loads((tmp_path / "vgg16_statistics.json").read_text())
    assert len(statistics["weights"]) == 16
    assert len(statistics["activations"]) == 23
    parameters = json.loads((tmp_path / "vgg16_parameters.json").read_text())
    for row in statistics["weights"]:  # symmetric over the largest magnitude: nothing is clipped
        found_scale, largest = max(parameters[row["name"]]["scale"]), max(-row["low"], row["high"])
        assert 127 * found_scale == pytest.approx(largest, rel=1e-6)
        assert not any(parameters[row["name"]]["zero_point"])
    for row in statistics["activations"][:-1]:  # asymmetric; 0 has a code
        assert 0 <= parameters[row["name"]]["zero_point"] <= 255
        assert parameters[row["name"]]["scale"] > 0
    sizes = {s: (tmp_path / f"vgg16{s}").stat().st_size for s in ("_float.safetensors", ".intact", ".onnx")}
    assert max(sizes[".intact"], sizes[".onnx"]) < sizes["_float.safetensors"] / 2.5
    assert json.loads((tmp_path / "vgg16_report.json").read_text())["metric"]["float"] == pytest.approx(found["float"])
    assert "features.40.weight" in capsys.readouterr().out
    assert intact.load(tmp_path / "vgg16.intact")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("bits", [8, 4])
def test_nin(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = script("nin_cifar10", monkeypatch).main(small(tmp_path, "--bits", str(bits)))
    # the last layer is in float: its last bits may differ, the class of an image hardly
    assert found["runtime"] == pytest.approx(found["qfloat"], abs=0.01)
    assert found["codes_differ"] == 0
    certificate = json.loads((tmp_path / f"nin_{bits}bit.onnx.certificate.json").read_text())
    assert certificate["float_codes_compared"] > 0


@pytest.mark.parametrize("more", [(), ("--learned", "--bits", "4")])
def test_resnet18(more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = script("resnet18_three_stages", monkeypatch).main(small(tmp_path, *more))
    assert found["q"] == found["qfloat"]
    assert found["codes_differ"] == 0
    assert found["qfloat"] > found["float"] - 0.15
    assert isinstance(intact.load(tmp_path / "resnet18.intact"), intact.QModel)


def test_resnet20_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("resnet20_low_bit", monkeypatch)
    found = module.main(small(tmp_path, "--bits", "3", "--epochs", "1"))
    assert found["codes_differ"] == found["outputs_differ"] == 0
    assert found["runtime"] == found["qfloat"]
    assert all(isinstance(v, torch.Tensor) for v in load_file(tmp_path / "resnet20_3bit.safetensors").values())
    checkpoint = str(tmp_path / "resnet20_3bit.safetensors")
    again = module.main(small(tmp_path / "again", "--bits", "3", "--resume", checkpoint))
    assert again == found
    session = onnxruntime.InferenceSession(tmp_path / "resnet20_3bit.onnx")
    assert session.get_inputs()[0].shape[1:] == [3, 16, 16]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_full_run_without_data_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script(name, monkeypatch)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SystemExit, match=r"examples/README\.md"):
            module.main(["--data", str(folder), "--out", str(tmp_path / "out")])


def test_scripts_name_no_folder_of_a_machine_and_start_as_a_user_starts_them(tmp_path: Path) -> None:
    for name in SCRIPTS:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert not re.search(r"\"/|shared", text), name
        assert len(text.splitlines()) <= 160, name
        assert name in (EXAMPLES / "README.md").read_text()
    done = subprocess.run([sys.executable, EXAMPLES / f"{SCRIPTS[0]}.py", "--help"], cwd=tmp_path, text=True,
                          capture_output=True, check=True)
    assert "--small" in done.stdout
