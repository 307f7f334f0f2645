"""NIN on CIFAR-10, quantization-aware: a float network is prepared as it is, at W8A8 or W4A4.

First and last layer stay in float. Batch norms keep working while the network trains (statistics of the batch, folded
into the quantized weights as they will be deployed), with a momentum of 0.01.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from common import accuracy, load_images, parser, runtime, train_float
from networks import NIN

import intact
from intact import FLOAT, Quant, Recipe, Rule, first, last


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; what it prints, as numbers."""
    options = parser(__doc__, bits=8, width=48, dropout=0.2, float_epochs=8, epochs=3, lr=3e-4, momentum=0.01)
    args = options.parse_args(argv)
    torch.manual_seed(args.seed)
    if args.small:
        args.width, args.float_epochs, args.epochs = 16, 6, 2
    images = load_images(args, 16 if args.small else 32)
    batches = images.batches(64 if args.small else 128, not args.small)
    tests = images.tests()

    print("1. A float network")
    net = train_float(NIN(width=args.width, dropout=args.dropout), batches, args.float_epochs, lr=1e-2)
    found = {"float": accuracy(net, tests)}
    print(f"  {found['float']:.2%} of {len(images.test):,} test images\n")

    print(f"2. W{args.bits}A{args.bits}; first and last layer stay in float")
    recipe = Recipe(rules=(Rule(first() | last(), FLOAT),),
                    default=Quant(weight_bits=args.bits, activation_bits=args.bits))
    fm = intact.capture(net, images.train[:8])
    plan = intact.plan(fm, recipe=recipe)
    for rejection in plan.rejections:
        print(f"  in float: {rejection}")
    qfloat = intact.prepare(fm, plan, schedule=intact.Schedule(batch_norm_momentum=args.momentum))
    intact.calibrate(qfloat, images.calibration())
    found["calibrated"] = accuracy(qfloat, tests)
    print(f"  only calibrated: {found['calibrated']:.2%}\n")

    print(f"3. Quantization-aware training, {args.epochs} epochs")
    intact.train(qfloat, batches, epochs=args.epochs, lr=args.lr, validate=lambda model: accuracy(model, tests),
                 on_epoch=print)
    intact.reestimate_batch_norm(qfloat, images.calibration())  # running averages lag behind
    found["qfloat"] = accuracy(qfloat, tests)
    print(f"batch norms re-estimated: {found['qfloat']:.2%}\n")

    print("4. Integers, exported")
    q = intact.convert(qfloat)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"nin_{args.bits}bit.onnx"
    certificate = intact.export(q, file)
    found |= {"runtime": accuracy(runtime(file), tests), "codes_differ": certificate.codes_differ}
    print(certificate)
    print(f"\nFloat {found['float']:.2%}, QFloat {found['qfloat']:.2%}, {file} in ONNX Runtime {found['runtime']:.2%}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
