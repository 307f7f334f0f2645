"""Every command on tiny models, and every way to call it wrongly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import intact
from intact.cli import app
from intact.targets import TARGETS

SOURCE = """
import torch, intact

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 8), torch.nn.Linear(5, 8)

    def forward(self, left, right):
        return self.a(left) + self.b(right)

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

ready = net()
other = torch.nn.Linear(6, 3)
needs = lambda width: net()
number = 3
recipe = intact.Recipe(rules=(intact.Rule(intact.path("0"), intact.FLOAT),))

def x(seed=1):
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))

def batches():
    yield x(1)
    yield x(2)

def dicts():
    return [{"input": x(1), "target": torch.arange(12) % 3}]

def nothing():
    return []
"""
BROKEN = "import a_package_that_is_not_there\n"


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_models.py").write_text(SOURCE)
    (tmp_path / "cli_broken.py").write_text(BROKEN)
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 6)).astype(np.float32)
    np.save("x.npy", x)
    np.savez("x.npz", images=x, labels=random.integers(0, 3, 20).astype(np.uint8))
    np.savez("two.npz", left=x, right=x[:, :5])
    yield tmp_path
    for name in ("cli_models", "cli_broken"):
        sys.modules.pop(name, None)


def run(*args: str) -> Result:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def refused(*args: str) -> str:
    """What the command says on stderr; it ends with 1, and leaves no file."""
    before = {*Path().iterdir(), Path("__pycache__")}
    result = run(*args)
    assert (result.code, result.out) == (1, "")
    assert "Traceback" not in result.err
    assert set(Path().iterdir()) <= before
    return result.err


@pytest.fixture
def integer(folder: Path) -> Path:
    assert run("quantize", "cli_models:net", "cli_models:batches", "-o", "net.intact").code == 0
    return folder / "net.intact"


def program(file: str, batch: int, dynamic: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    torch.export.save(torch.export.export(net, (torch.randn(batch, 6),), dynamic_shapes=shapes), file)


# -- each command ---------------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version").out == f"intact {intact.__version__}\n"


def test_help_names_every_command() -> None:
    text = run("--help").out
    assert all(name in text for name in ("quantize", "plan", "compare", "export", "targets", "demo"))


def test_targets_are_listed_and_start_a_file(folder: Path) -> None:
    listed = run("targets").out
    assert all(name in listed for name in TARGETS) and "no floats" in listed
    text = run("targets", "fixed_point").out
    (folder / "npu.toml").write_text(text.replace('"fixed_point"', '"npu"', 1))
    result = run("quantize", "cli_models:net", "x.npy", "-o", "net.intact", "--target", "npu.toml")
    assert result.code == 0, result.err
    assert intact.load(folder / "net.intact").target.name == "npu"
    assert "target 'npu'" in run("plan", "cli_models:net", "x.npy", "--target", "npu.toml").out
    (folder / "npu.toml").write_text(text)
    assert "comes with Intact" in refused("plan", "cli_models:net", "x.npy", "--target", "npu.toml")
    assert "cannot be described" in refused("targets", "onnxruntime")


def test_quantize_gives_the_model_of_the_api(folder: Path) -> None:
    result = run("quantize", "cli_models:net", "x.npy", "-o", "net.intact", "--onnx", "net.onnx", "--batch-size", "7")
    assert result.code == 0, result.err
    assert "100.0% of 72 multiply-accumulates" in result.out
    assert "integer operations: 0 of" in result.out
    import cli_models

    x = torch.from_numpy(np.load("x.npy"))
    mine = intact.load("net.intact")(x)
    assert torch.equal(mine, intact.quantize(cli_models.net(), x.split(7))(x))
    session = onnxruntime.InferenceSession("net.onnx")
    assert np.array_equal(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], mine.numpy())
    assert Path("net.onnx.certificate.json").is_file()


@pytest.mark.parametrize(("model", "data"), [("ready", "cli_models:batches"), ("Two", "two.npz"), ("net", "x.npz")])
def test_quantize_takes(folder: Path, model: str, data: str) -> None:
    assert run("quantize", f"cli_models:{model}", data, "-o", "net.intact").code == 0
    assert Path("net.intact").is_file()


def test_options_make_the_recipe(folder: Path) -> None:
    options = ("--float", "2", "--weight-bits", "4", "--activation-bits", "6", "--activation-observer", "minmax")
    text = run("plan", "cli_models:net", "2x6", *options).out
    assert "2 (linear): the recipe says float" in text
    assert "int4_narrow per channel" in text and "uint6 per tensor affine, minmax" in text


def test_recipe_in_python(folder: Path) -> None:
    text = run("plan", "cli_models:net", "2,6", "--recipe", "cli_models:recipe", "--target", "reference").out
    assert "Plan for target 'reference'" in text
    assert "0 (linear): the recipe says float" in text


def test_compare_prints_and_writes_the_report(integer: Path) -> None:
    result = run("compare", "cli_models:net", "net.intact", "x.npz", "--json", "report.json")
    assert result.code == 0, result.err
    assert "top-1 accuracy" in result.out and "latency" in result.out
    report = json.loads(Path("report.json").read_text())
    assert (report["samples"], report["metric"]["name"]) == (20, "top-1 accuracy")


def test_compare_takes_labels_by_key(integer: Path) -> None:
    np.savez("keyed.npz", x=np.load("x.npy"), truth=np.zeros(20, np.int64))
    for data, key, samples in (("keyed.npz", "truth", 20), ("cli_models:dicts", "target", 12)):
        result = run("compare", "cli_models:net", "net.intact", data, "--labels", key, "--no-latency")
        assert f"{samples} samples" in result.out and "top-1 accuracy" in result.out, result.err
        assert "latency" not in result.out


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_export_of_c(folder: Path) -> None:
    assert run("quantize", "cli_models:net", "x.npy", "-o", "net.intact", "--target", "fixed_point").code == 0
    result = run("export", "net.intact", "net.c")
    assert result.code == 0 and "integer operations: 0 of" in result.out and "arena" in result.out
    assert Path("net.h").is_file() and Path("net_test.c").is_file()
    assert "always codes" in refused("export", "net.intact", "net.c", "--inputs", "codes")


def test_export_says_what_it_writes(integer: Path) -> None:
    message = refused("export", "net.intact", "net.bin")
    assert all(suffix in message for suffix in (".onnx", ".tflite", ".c"))
    assert "no such option" in refused("export", "net.intact", "net.onnx", "--layout", "channels_last")


def test_export_to_litert_with_its_options(folder: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    assert run("quantize", "cli_models:net", "x.npy", "-o", "lite.intact", "--target", "litert").code == 0
    assert run("export", "lite.intact", "lite.tflite", "--batch", "3", "--layout", "channels_last").code == 0
    assert list(interpreter.Interpreter("lite.tflite").get_input_details()[0]["shape"]) == [3, 6]


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "intact", "--version"], capture_output=True, text=True, check=True)
    assert intact.__version__ in done.stdout


def test_export(integer: Path) -> None:
    result = run("export", "net.intact", "net.onnx")
    assert result.code == 0 and "integer operations: 0 of" in result.out
    run("quantize", "cli_models:net", "x.npy", "-o", "codes.intact", "--quantized-outputs")
    assert run("export", "codes.intact", "codes.onnx", "--inputs", "codes", "--outputs", "codes").code == 0
    session = onnxruntime.InferenceSession("codes.onnx")
    assert (session.get_inputs()[0].type, session.get_outputs()[0].type) == ("tensor(uint8)", "tensor(uint8)")


def test_export_for_litert(integer: Path) -> None:
    assert "target='litert'" in refused("export", "net.intact", "net.tflite")
    assert run("quantize", "cli_models:net", "x.npy", "-o", "lite.intact", "--target", "litert_reference").code == 0
    result = run("export", "lite.intact", "net.tflite")
    assert result.code == 0 and "integer operations: 0 of" in result.out and "BUILTIN_REF" in result.out, result.err
    assert Path("net.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize(("batch", "dynamic"), [(3, True), (1, False)])
def test_exported_program(folder: Path, batch: int, dynamic: bool) -> None:
    program("net.pt2", batch, dynamic)
    assert "QGemm" in run("plan", "net.pt2").out
    result = run("quantize", "net.pt2", "x.npy", "-o", "net.intact", "--onnx", "net.onnx")
    assert result.code == 0, result.err
    result = run("compare", "net.pt2", "net.intact", "x.npz")
    assert "20 samples" in result.out and "top-1 accuracy" in result.out, result.err


def test_demo(folder: Path) -> None:
    result = run("demo", "--epochs", "2", "--out", "a/demo")
    assert result.code == 0, result.err
    assert "0 of 3,600 output values differ" in result.out and " codes differ" in result.out
    names = {p.name for p in Path("a/demo").iterdir()}
    assert names == {"digits.intact", "digits.onnx", "digits.onnx.certificate.json", "report.json"}


# -- errors: of outputs and recipes, before any work ------------------------------------------------


@pytest.mark.parametrize(("args", "words"), [
    ((), ("nothing to write", "-o net.intact")),
    (("-o", "net.bin"), ("suffix", "got:     .bin", "allowed: .intact", "fix:     name it net.intact")),
    (("-o", "gone/net.intact"), ("ArtifactError", "where:   gone/net.intact", "folder does not exist")),
    (("-o", "folder.intact"), ("it is a folder",)),
    (("--onnx", "net.pb"), ("ExportError", "allowed: .onnx")),
    (("-o", "n.intact", "--target", "onxruntime"), ("unknown target", "got:     onxruntime", "did you mean 'onnx")),
    (("--onnx", "n.onnx", "--target", "reference"), ("ExportError", "allowed: onnxruntime")),
    (("-o", "n.intact", "--weight-bits", "99"), ("weight_bits is out of range", "got:     99", "allowed: 2 to 16")),
    (("-o", "n.intact", "--recipe", "cli_models:recipe", "--float", "0"), ("PlanError", "options")),
    (("-o", "n.intact", "--recipe", "cli_models:number"), ("not a recipe", "got:     int")),
])
def test_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...],
                                 words: tuple[str, ...]) -> None:
    (folder / "folder.intact").mkdir()
    monkeypatch.setattr("intact.cli.commands.open_model", lambda text: pytest.fail("the model was opened"))
    text = refused("quantize", "cli_models:net", "x.npy", *args)
    assert all(word in text for word in words), text


def test_rule_that_matches_nothing(folder: Path) -> None:
    text = refused("quantize", "cli_models:net", "x.npy", "-o", "net.intact", "--float", "layer*")
    assert "a rule matches nothing" in text and "path('layer*')" in text and "allowed: the model has 0, 2" in text


def test_unknown_observer(folder: Path) -> None:
    text = refused("quantize", "cli_models:net", "x.npy", "-o", "net.intact", "--observer", "msee")
    assert "PlanError" in text and "got:     msee" in text and "mse'" in text


def test_target_without_the_bits(folder: Path) -> None:
    assert "cannot run 12-bit weights" in refused("plan", "cli_models:net", "1x6", "--weight-bits", "12")


# -- errors: of models ------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "words"), [
    ("cli_models:nett", ("no such name", "nearest: net")),
    ("cli_modles:net", ("cannot be imported", "where:   cli_modles", "looked for in")),
    ("cli_broken:net", ("cannot be imported", "a_package_that_is_not_there")),
    ("cli_models:needs", ("needs arguments", "width")),
    ("cli_models:number", ("gives no module", "got:     int")),
    ("cli models:net", ("no package.module:factory",)),
    ("net.pth", ("got:     .pth", "allowed: .pt2", "pickles")),
    ("gone.pt2", ("no such file", "where:   gone.pt2")),
    ("text.pt2", ("cannot be read as an exported program", "fix:")),
    ("zip.pt2", ("cannot be read as an exported program", "fix:")),
])
def test_model_that_is_none(folder: Path, model: str, words: tuple[str, ...]) -> None:
    Path("text.pt2").write_text("no program")
    with zipfile.ZipFile("zip.pt2", "w") as archive:
        archive.writestr("a", "b")
    text = refused("quantize", model, "x.npy", "-o", "net.intact")
    assert "CaptureError" in text
    assert all(word in text for word in words), text


def test_plan_needs_a_shape_that_fits(folder: Path) -> None:
    assert "give DATA, or a shape" in refused("plan", "cli_models:net")
    assert "size of zero" in refused("plan", "cli_models:net", "0x6")
    assert "fails on the example inputs" in refused("plan", "cli_models:net", "2x5")
    assert "more than one input" in refused("plan", "cli_models:Two", "2x6")


def test_fixed_batch_that_does_not_divide(folder: Path) -> None:
    program("net.pt2", 3, dynamic=False)
    text = refused("quantize", "net.pt2", "x.npy", "-o", "net.intact")
    assert "got:     20" in text and "a multiple of 3" in text
    assert "leave the shape out" in refused("plan", "net.pt2", "3x6")


def test_a_fixed_batch_counts_all_its_samples(folder: Path) -> None:
    program("net.pt2", 5, dynamic=False)
    assert run("quantize", "net.pt2", "x.npy", "-o", "net.intact").code == 0
    result = run("compare", "net.pt2", "net.intact", "x.npz")
    assert "20 samples" in result.out and "top-1 accuracy" in result.out and "batches of 5" in result.out, result.err


# -- errors: of data --------------------------------------------------------------------------------


def _bad_arrays() -> None:
    x = np.load("x.npy")
    np.save("double.npy", x.astype(np.float64))
    np.save("half.npy", x.astype(np.float16))
    np.save("bytes.npy", x.astype(np.uint8))
    np.save("index.npy", x.astype(np.int64))
    np.save("scalar.npy", np.float32(1))
    np.save("empty.npy", x[:0])
    np.save("object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("object.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    np.savez("many.npz", a=x, b=x)
    Path("text.npy").write_text("no array")
    Path("text.npz").write_text("no archive")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:200])
    Path("renamed.npy").write_bytes(Path("x.npz").read_bytes())
    Path("renamed.npz").write_bytes(Path("x.npy").read_bytes())


@pytest.mark.parametrize(("data", "words"), [
    ("double.npy", ("got:     float64", "allowed: float32", "fix:     convert it: array.astype('float32')")),
    ("half.npy", ("got:     float16", "astype('float32')")),
    ("bytes.npy", ("got:     uint8", "convert and scale", "/ 255")),
    ("index.npy", ("model fails on the example inputs", "Long and Float")),
    ("scalar.npy", ("no samples", "shape ()")),
    ("empty.npy", ("no samples", "shape (0, 6)")),
    ("object.npy", ("cannot be read", "objects would be pickles, and are refused")),
    ("object.npz", ("cannot be read", "['x']", "allow_pickle=False")),
    ("many.npz", ("cannot be told to be inputs", "got:     a, b", "allowed: arrays named input")),
    ("text.npy", ("cannot be read",)),
    ("text.npz", ("cannot be read",)),
    ("cut.npy", ("cannot be read",)),
    ("renamed.npy", ("holds no single array", "name it .npz")),
    ("renamed.npz", ("holds no archive", "name it .npy")),
    ("gone.npy", ("no such file", "looked for from")),
    ("x.csv", ("got:     .csv", "allowed: .npy, .npz")),
    ("cli_models:number", ("no iterable of batches", "got:     int")),
    ("cli_models:x", ("no iterable of batches", "got:     Tensor")),
    ("cli_models:nothing", ("there is no data",)),
])
def test_data_that_is_none(folder: Path, data: str, words: tuple[str, ...]) -> None:
    _bad_arrays()
    text = refused("quantize", "cli_models:net", data, "-o", "net.intact")
    assert all(word in text for word in words), text


def test_one_array_for_two_inputs(folder: Path) -> None:
    text = refused("quantize", "cli_models:Two", "x.npy", "-o", "net.intact")
    assert "more than one input" in text and "allowed: left, right" in text


@pytest.mark.parametrize(("data", "options", "words"), [
    ("x.npy", ("--labels", "y"), ("a .npy file has no labels", "numpy.savez")),
    ("x.npz", ("--labels", "truth"), ("no such labels", "got:     images, labels")),
    ("cli_models:batches", ("--labels", "truth"), ("no such labels", "got:     Tensor")),
    ("floats.npz", (), ("labels are not class numbers", "float32 of shape (20,)")),
    ("short.npz", (), ("different numbers of samples", "[19, 20]")),
    ("x.npz", ("--json", "report.txt"), ("allowed: .json",)),
])
def test_compare_refuses(integer: Path, data: str, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    x = np.load("x.npy")
    np.savez("floats.npz", x=x, labels=x[:, 0])
    np.savez("short.npz", x=x, y=np.zeros(19, np.int64))
    text = refused("compare", "cli_models:net", "net.intact", data, *options)
    assert all(word in text for word in words), text


def test_artefacts_that_are_none(integer: Path) -> None:
    Path("text.intact").write_text("no model")
    assert "ArtifactError" in refused("export", "text.intact", "net.onnx")
    assert "ArtifactError" in refused("compare", "cli_models:net", "gone.intact", "x.npy")
    assert "another structure" in refused("compare", "cli_models:other", "net.intact", "x.npy")
    assert "allowed: input" in refused("compare", "cli_models:Two", "net.intact", "two.npz")
    assert "allowed: .c, .onnx, .tflite" in refused("export", "net.intact", "net.txt")
    assert "an output has no codes" in refused("export", "net.intact", "net.onnx", "--outputs", "codes")


def test_demo_without_scikit_learn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "fix:     pip install 'intact[demo]'" in refused("demo")


def test_demo_into_a_file(folder: Path) -> None:
    assert "where:   x.npy" in refused("demo", "--out", "x.npy")


def test_errors_of_the_users_code_keep_their_traceback(folder: Path) -> None:
    Path("cli_broken.py").write_text("def net():\n    raise RuntimeError('mine')\n")
    with pytest.raises(RuntimeError, match="mine"):
        run("plan", "cli_broken:net", "1x6")
