"""VGG-16, step by step: statistics, bit width, parameters, codes, fine-tuning, evaluation, and what was lost.

docs/step_by_step.md explains each step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import accuracy, load_images, parser, train_float
from networks import VGG16
from safetensors.torch import load_file, save_file

import intact
from intact import Quant, Recipe


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; what it prints, as numbers."""
    options = parser(__doc__, bits=8, width=16, hidden=128, dropout=0.2, float_epochs=8)
    options.add_argument("--weights", type=Path, help="safetensors of a trained network, instead of training one")
    args = options.parse_args(argv)
    torch.manual_seed(args.seed)
    if args.small:
        args.width, args.hidden, args.float_epochs = 6, 32, 5
    args.out.mkdir(parents=True, exist_ok=True)
    images = load_images(args)
    batches = images.batches(64 if args.small else 128, not args.small)
    calibration, tests = images.calibration(), images.tests()

    title("0. A trained float network")
    net = VGG16(width=args.width, hidden=args.hidden, dropout=args.dropout)
    if args.weights:
        net.load_state_dict(load_file(args.weights))
        net.eval()
    else:
        train_float(net, batches, args.float_epochs)
    save_file(net.state_dict(), args.out / "vgg16_float.safetensors")
    found = {"float": accuracy(net, tests)}
    print(f"{found['float']:.2%} of {len(images.test):,} test images")

    title("1. Statistics of every weight and every activation")
    fm = intact.capture(net, calibration[0])
    statistics = intact.statistics(fm, calibration)
    print(statistics)
    (args.out / "vgg16_statistics.json").write_text(statistics.to_json())

    title("2. The bit width: what calibration alone reaches")
    for bits in (8, 6, 4):
        print(f"W{bits}A{bits}: {accuracy(quantized(fm, bits, calibration), tests):.2%}")
    print(f"taken: {args.bits} bits")

    title("3. Scales and zero points: weights symmetric per channel, activations asymmetric")
    qfloat = quantized(fm, args.bits, calibration)
    parameters = print_parameters(intact.convert(qfloat))
    (args.out / "vgg16_parameters.json").write_text(json.dumps(parameters, indent=1))

    title("4. Light fine-tuning of the quantized model: Adam, learning rate 1e-5, one epoch")
    found["calibrated"] = accuracy(qfloat, tests)
    adam = torch.optim.Adam(qfloat.parameters(), lr=1e-5)
    print(intact.train(qfloat, batches, epochs=1, optimizer=adam))
    found["qfloat"] = accuracy(qfloat, tests)
    print(f"{found['calibrated']:.2%} -> {found['qfloat']:.2%}")

    title("5. Integers, and their size on disk")
    q = intact.convert(qfloat)
    print(q)
    certificate = intact.export(q, args.out / "vgg16.onnx")
    intact.save(q, args.out / "vgg16.intact")
    print(certificate)
    for name in ("vgg16_float.safetensors", "vgg16.intact", "vgg16.onnx"):
        print(f"  {(args.out / name).stat().st_size:12,} bytes  {args.out / name}")

    title("6. Against the float network: what was lost, and where")
    report = intact.compare(fm, q, tests)
    print(report)
    (args.out / "vgg16_report.json").write_text(report.to_json())
    return found | {"q": report.metric.integer_value, "codes_differ": certificate.codes_differ}


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def quantized(fm: intact.FloatModel, bits: int, calibration: list[torch.Tensor]) -> intact.QFloatModel:
    """The QFloat model at a width, calibrated."""
    recipe = Recipe(default=Quant(weight_bits=bits, activation_bits=bits))
    return intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=recipe)), calibration)


def print_parameters(q: intact.QModel) -> dict[str, dict[str, object]]:
    """Scale and zero point of every edge and weight as a table, with the codes of the weights; and as plain data."""
    table: dict[str, dict[str, object]] = {}
    for name, p in q.qparams.items():
        table[name] = {"type": str(p.qtype), "scale": p.scale.tolist(), "zero_point": p.zero_point.tolist()}
        scale = f"{float(p.scale):10.3e}" if not p.scale.ndim else f"{len(p.scale)} scales"
        print(f"  {name:14} {p.qtype!s:12} {scale:>12}  zero point {int(p.zero_point.flatten()[0])}")
    for binding in q.bindings.values():
        if binding.weight is not None:
            codes, p = binding.weight.codes, binding.weight.qparams
            table[f"{binding.where}.weight"] = {"type": str(p.qtype), "scale": p.scale.tolist(),
                                                "zero_point": p.zero_point.tolist()}
            print(f"  {binding.where:14} {p.qtype!s:12} {len(p.scale):4} scales {float(p.scale.min()):.2e} to "
                  f"{float(p.scale.max()):.2e}, codes {int(codes.min())} to {int(codes.max())} "
                  f"({codes.numel() * codes.element_size():,} bytes)")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
