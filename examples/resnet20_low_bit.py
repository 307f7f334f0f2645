"""ResNet-20 on CIFAR-10 at 8, 4, 3 or 2 bits: learned step sizes (LSQ), distillation from the float network.

The first and the last layer keep 8 bits; below 4 bits, the operands of an addition do so too. The accuracy that
training prints is that of the exported file: no code differs between the QFloat model, the integer model and ONNX
Runtime.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from common import Images, accuracy, codes_that_differ, data_folder, load_images, parser, runtime, train_float
from networks import ResNet20
from safetensors.torch import load_file, save_file
from torch import nn

import intact
from intact import Quant, Recipe, Rule, first, last, op

# Fewer bits change more on the way to a good network.
LEARNING_RATE = {8: 2e-5, 4: 1e-3, 3: 1.5e-3, 2: 2e-3}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; what it prints, as numbers."""
    options = parser(__doc__, bits=4, epochs=10, batch=128)
    options.add_argument("--lr", type=float, help="by default 2e-5, 1e-3, 1.5e-3, 2e-3 at 8, 4, 3, 2 bits")
    options.add_argument("--resume", type=Path, metavar="FILE", help="a checkpoint to evaluate, instead of training")
    args = options.parse_args(argv)
    args.lr = args.lr or LEARNING_RATE.get(args.bits, 1e-3)
    torch.manual_seed(args.seed)
    images = load_images(args, 16 if args.small else 32)
    tests = images.tests()
    net = float_network(args, images)
    found = {"float": accuracy(net, tests)}
    print(f"float: {found['float']:.2%} of {len(images.test):,} test images")

    fm = intact.capture(net, images.train[:8])
    qfloat = intact.prepare(fm, intact.plan(fm, recipe=low_bit(args.bits)))
    intact.calibrate(qfloat, images.calibration())
    found["ptq"] = accuracy(qfloat, tests)
    print(f"W{args.bits}A{args.bits}, only calibrated: {found['ptq']:.2%}", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        qfloat.load_state_dict(load_file(args.resume))
    else:
        train(qfloat, images, args)
        save_file(qfloat.state_dict(), args.out / f"resnet20_{args.bits}bit.safetensors")
    return found | deploy(qfloat, images, args)


def float_network(args, images: Images) -> nn.Module:
    """The trained network of the data folder; a small one for the digits."""
    if args.small:
        args.epochs = min(args.epochs, 2)
        return train_float(ResNet20(width=8, blocks=1), images.batches(64, augment=False), 4)
    net = ResNet20()
    net.load_state_dict(load_file(data_folder(args) / "resnet20_cifar10.safetensors"))
    return net.eval()


def low_bit(bits: int) -> Recipe:
    """All layers at a width but for the first and the last; every scale is learned."""
    lsq = Quant(weight_bits=bits, activation_bits=bits, weight_quantizer="lsq", activation_quantizer="lsq")
    ends = Quant(weight_quantizer="lsq", activation_quantizer="lsq")
    rules = [Rule(first() | last(), ends)]
    if bits < 4:
        rules.append(Rule(op("add"), replace(ends, output_bits=bits)))
    return Recipe(rules=tuple(rules), default=lsq)


def train(qfloat: intact.QFloatModel, images: Images, args) -> None:
    """Quantization-aware training; the teacher is the float network that the model was made from."""
    start, tests = time.perf_counter(), images.tests()
    intact.train(
        qfloat, images.batches(args.batch, augment=not args.small), epochs=args.epochs, lr=args.lr,
        distill=intact.Distill(weight=0.9, temperature=4.0), validate=lambda model: accuracy(model, tests),
        on_epoch=lambda epoch: print(f"{epoch}  after {time.perf_counter() - start:.0f} s", flush=True),
    )


def deploy(qfloat: intact.QFloatModel, images: Images, args) -> dict[str, float]:
    """Convert, export, and run the file on all test images."""
    tests, file = images.tests(), args.out / f"resnet20_{args.bits}bit.onnx"
    q = intact.convert(qfloat)
    differ, compared = codes_that_differ(qfloat, q, tests[:1])
    certificate = intact.export(q, file, data={qfloat.input_names[0]: images.test[:: max(1, len(images.test) // 200)]})
    run = runtime(file)
    trained, exported = accuracy(qfloat, tests), accuracy(run, tests)
    with torch.no_grad():
        outputs = sum(int((run(x) != qfloat(x)).sum()) for x, _ in tests)
    print(certificate)
    print(f"QFloat model {trained:.2%}, exported file in ONNX Runtime {exported:.2%} of {len(images.test):,} images")
    print(f"{differ + certificate.codes_differ} of {compared + certificate.codes_compared:,} codes differ; "
          f"{outputs} of {10 * len(images.test):,} output values differ")
    return {"qfloat": trained, "runtime": exported, "codes_differ": differ + certificate.codes_differ,
            "outputs_differ": outputs}


if __name__ == "__main__":
    main(sys.argv[1:])
