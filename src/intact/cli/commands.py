"""The commands."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from intact import __version__
from intact.api import EXPORTERS, capture, compare, export, load, quantize, save
from intact.api import plan as make_plan
from intact.cli.demo import coverage, run_demo
from intact.cli.sources import inputs_of, open_data, open_example, open_model, python_object
from intact.errors import ArtifactError, ExportError, IntactError, PlanError
from intact.exporters import RUNTIMES
from intact.planning import FLOAT, Quant, Recipe, Rule, lowered, path
from intact.targets import TARGETS, get_target, target_to_toml

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Quantize PyTorch models: what you evaluate is what you ship, bit for bit.")

P = ParamSpec("P")
R = TypeVar("R")

ModelText = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:factory, or a .pt2 program. Either "
                                               "is code that will run: use what you trust.")]
DataText = Annotated[str, typer.Argument(metavar="DATA", help=".npy, .npz, or package.module:factory of batches.")]
FileIn = Annotated[Path, typer.Argument(metavar="NET.intact", help="An integer model.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples in a batch of .npy and .npz.")]
TargetName = Annotated[str, typer.Option(help="The runtime whose codes the model gives: a name (intact targets lists "
                                            "them), or a file *.toml.")]
RecipeText = Annotated[str | None, typer.Option("--recipe", metavar="MODULE:NAME", help="A Recipe in Python.")]
Floats = Annotated[list[str] | None, typer.Option("--float", metavar="PATTERN", help="Module paths to leave in float "
                                                  "(a glob); may be repeated.")]
WeightBits = Annotated[int | None, typer.Option(help="Bits of weights (8).")]
ActivationBits = Annotated[int | None, typer.Option(help="Bits of activations (8).")]
ObserverName = Annotated[str | None, typer.Option("--activation-observer", "--observer", help="Of activations (mse).")]
OutputCodes = Annotated[bool, typer.Option("--quantized-outputs", help="Give the outputs codes of their own.")]
IO = Literal["float", "codes"]
Layout = Literal["torch", "channels_last"]


# -- commands -----------------------------------------------------------------------------------


def _reported(command: Callable[P, R]) -> Callable[P, R]:
    """The command, with errors of Intact as text on stderr and exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        torch_log = logging.getLogger("torch")
        level = torch_log.level
        try:
            with warnings.catch_warnings():
                # torch.export trips over its own deprecation, and logs tracebacks of what it then raises
                warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)", FutureWarning)
                torch_log.setLevel(logging.CRITICAL)
                return command(*args, **kwargs)
        except IntactError as error:
            _show(error)
            raise typer.Exit(1) from None
        finally:
            torch_log.setLevel(level)

    return run


def _show(error: IntactError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(f"{type(error).__name__}: ", "bold red").append(error.what, "bold default"))
    for label, value in (("where", error.where), ("got", error.got), ("allowed", error.allowed), ("fix", error.fix)):
        if value is not None and value != "":
            console.print(Text(f"  {label + ':':9}", "cyan").append(str(value), "default"))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"intact {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                help="Show the version.")] = False) -> None:
    """Quantize PyTorch models: what you evaluate is what you ship, bit for bit."""


@app.command("quantize")
@_reported
def _quantize(
    model: ModelText, data: DataText,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The integer model, *.intact.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Also export, with a parity certificate, to *.onnx.")] = None,
    target: TargetName = "onnxruntime", recipe: RecipeText = None, float_: Floats = None,
    weight_bits: WeightBits = None, activation_bits: ActivationBits = None, observer: ObserverName = None,
    quantized_outputs: OutputCodes = False, batch_size: BatchSize = 32,
) -> None:
    """Quantize MODEL with the calibration batches of DATA."""
    if output is None and onnx is None:
        raise ArtifactError("there is nothing to write", fix="give -o net.intact, or --onnx net.onnx, or both")
    _check_output(output, ".intact")
    _check_output(onnx, ".onnx")
    where = get_target(target)
    if onnx is not None and where.name not in RUNTIMES:
        raise ExportError("only models for onnxruntime can be exported to ONNX", where="--target", got=target,
                          allowed=", ".join(RUNTIMES), fix="leave out --onnx, or choose --target onnxruntime")
    wish = _recipe(recipe, float_, weight_bits, activation_bits, observer, quantized_outputs)
    net = open_model(model)
    q = quantize(net, open_data(data, net, batch_size), target=where, recipe=wish)
    if output is not None and q.opaque:  # before the export: all files are written, or none
        raise ArtifactError("modules that could not be captured are Python code and cannot be saved",
                            got=", ".join(sorted(q.opaque)), fix="rewrite them so that torch.export captures them")
    certificate = None if onnx is None else export(q, onnx)
    typer.echo(coverage(q))
    if output is not None:
        save(q, output)
        typer.echo(_wrote(output))
    if onnx is not None:
        typer.echo(f"{certificate}\n{_wrote(onnx)}")


@app.command("plan")
@_reported
def _plan(
    model: ModelText,
    data: Annotated[str | None, typer.Argument(metavar="DATA_OR_SHAPE", help="DATA, or the shape of the float input, "
                                               "such as 1x3x224x224; a .pt2 program needs neither.")] = None,
    target: TargetName = "onnxruntime", recipe: RecipeText = None, float_: Floats = None,
    weight_bits: WeightBits = None, activation_bits: ActivationBits = None, observer: ObserverName = None,
    quantized_outputs: OutputCodes = False, batch_size: BatchSize = 32,
) -> None:
    """Show what would run in integers, with which codes, and why the rest would not."""
    wish = _recipe(recipe, float_, weight_bits, activation_bits, observer, quantized_outputs)
    where = get_target(target)
    net = open_model(model)
    fm = lowered(capture(net, inputs_of(net, open_example(data, net, batch_size))), where)
    typer.echo(str(make_plan(fm, where, wish)))


@app.command("compare")
@_reported
def _compare(
    model: ModelText, file: FileIn, data: DataText,
    labels: Annotated[str | None, typer.Option(metavar="KEY", help="Labels in an .npz, or in batches that are dicts "
                                               "(an .npz is searched for 'labels' and 'y').")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the report as *.json.")] = None,
    latency: Annotated[bool, typer.Option(help="Measure sizes and latencies in onnxruntime.")] = True,
    batch_size: BatchSize = 32,
) -> None:
    """Hold an integer model against the float MODEL it was made from."""
    _check_output(json, ".json")
    q = load(file)
    net = open_model(model)
    report = compare(net, q, open_data(data, net, batch_size, labelled=True, key=labels), latency=latency)
    if json is not None:
        _write_text(json, report.to_json() + "\n")
    typer.echo(str(report))
    if json is not None:
        typer.echo(_wrote(json))


@app.command("export")
@_reported
def _export(
    file: FileIn,
    output: Annotated[Path, typer.Argument(metavar="NET.onnx|NET.tflite|NET.c", help="The file to write.")],
    inputs: Annotated[IO | None, typer.Option(help="Of the ONNX or LiteRT model (float).")] = None,
    outputs: Annotated[IO | None, typer.Option(help="Of the ONNX or LiteRT model (float).")] = None,
    layout: Annotated[Layout | None, typer.Option(help="Axes of the LiteRT model (torch).")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples that the LiteRT model takes (1).")] = None,
) -> None:
    """Write an integer model as ONNX or for LiteRT, once the runtime gave its codes; or as C, once a program did."""
    if output.suffix.lstrip(".") not in EXPORTERS:
        raise ExportError("the output file has another suffix", where=str(output), got=output.suffix or "none",
                          allowed=", ".join(f".{kind}" for kind in EXPORTERS),
                          fix="the suffix says what is written: choose one of these")
    _check_output(output, output.suffix)
    said = (("inputs", inputs), ("outputs", outputs), ("layout", layout), ("batch", batch))
    options: dict[str, Any] = {k: v for k, v in said if v is not None}
    if options.keys() & {"inputs", "outputs"} and output.suffix == ".c":
        raise ExportError("inputs and outputs in C are always codes", where=f"--{next(iter(options))}",
                          fix="leave the option out")
    certificate = export(load(file), output, **options)
    typer.echo(f"{certificate}\n{_wrote(output)}")


@app.command("targets")
@_reported
def _targets(
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help="Print this one as TOML, to start a file of "
                                                 "your own from.")] = None,
) -> None:
    """List the targets, or print one as TOML."""
    if target is not None:
        typer.echo(target_to_toml(get_target(target)), nl=False)
        return
    for found in TARGETS.values():
        sign = "int" if found.signed_activations else "uint"
        typer.echo(f"{found.name:18} {sign}{_span(found.activation_bits)} activations, int{_span(found.weight_bits)} "
                   f"weights, {found.arithmetic.requantize.value}, {found.arithmetic.rounding.value}"
                   f"{'' if found.float_operations else ', no floats'}")


def _span(widths: tuple[int, ...]) -> str:
    whole = len(widths) > 2 and widths == tuple(range(widths[0], widths[-1] + 1))
    return f"{widths[0]}..{widths[-1]}" if whole else "/".join(map(str, widths))


@app.command("demo")
@_reported
def _demo(
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("intact-demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 10,
) -> None:
    """Train, quantize, export and compare a small CNN on scikit-learn's handwritten digits."""
    run_demo(out, epochs, typer.echo)


# -- recipe and output --------------------------------------------------------------------------


def _recipe(text: str | None, floats: list[str] | None, weight_bits: int | None, activation_bits: int | None,
            observer: str | None, quantized_outputs: bool) -> Recipe:
    changes = {"weight_bits": weight_bits, "activation_bits": activation_bits, "activation_observer": observer}
    given = {k: v for k, v in changes.items() if v is not None}
    if text is None:
        rules = tuple(Rule(path(pattern), FLOAT) for pattern in floats or ())
        return Recipe(rules, Quant(**given), quantized_outputs)  # type: ignore[arg-type]
    if floats or given or quantized_outputs:
        raise PlanError("a recipe in Python and options that make another one", where=f"--recipe {text}",
                        fix="say it all in the recipe, or all in options")
    value = python_object(text, PlanError)
    if not isinstance(value, Recipe):
        raise PlanError("this is not a recipe", where=text, got=type(value).__name__, allowed="intact.Recipe")
    return value


def _check_output(file: Path | None, suffix: str) -> None:
    """Refuse, before any work, a file that could not be written in the end."""
    if file is None:
        return
    kind = ExportError if suffix in (".onnx", ".tflite", ".c") else ArtifactError
    if file.suffix != suffix:
        raise kind("the output file has another suffix", where=str(file), got=file.suffix or "none", allowed=suffix,
                   fix=f"name it {file.with_suffix(suffix) if file.name else '*' + suffix}")
    folder = file.parent
    problem = "it is a folder" if file.is_dir() else "its folder does not exist" if not folder.is_dir() else \
        None if os.access(folder, os.W_OK | os.X_OK) else "its folder is not writable"
    if problem:
        raise kind("this path cannot be written", where=str(file), got=problem,
                   fix="give the path of a file in an existing folder that you may write to")


def _write_text(file: Path, text: str) -> None:
    """The whole text, or no file."""
    draft = file.with_name(f".{file.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        draft.write_text(text)
        os.replace(draft, file)
    except OSError as error:
        raise ArtifactError("the file could not be written", where=str(file), got=error.strerror) from None
    finally:
        draft.unlink(missing_ok=True)


def _wrote(file: Path) -> str:
    return f"wrote {file} ({file.stat().st_size:,} bytes)"
