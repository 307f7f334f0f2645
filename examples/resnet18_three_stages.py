"""ResNet-18 through its three stages: Float -> QFloat -> Q.

Float is an ordinary network. QFloat simulates the integer model bit for bit and can be trained. Q holds integers only.
Quantizing costs a little accuracy between the first two; between QFloat and Q not one code differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from common import accuracy, codes_that_differ, load_images, parser, train_float
from networks import ResNet18

import intact
from intact import Quant, Recipe


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; what it prints, as numbers."""
    options = parser(__doc__, bits=8, width=16, float_epochs=6, epochs=2, lr=1e-4)
    options.add_argument("--learned", action="store_true", help="scales are learned (LSQ), not observed")
    args = options.parse_args(argv)
    torch.manual_seed(args.seed)
    if args.small:
        args.width, args.float_epochs, args.epochs = 4, 3, 1
    images = load_images(args, 16 if args.small else 32)
    tests, found = images.tests(), {}

    print("Stage 1, Float: an ordinary network")
    net = train_float(ResNet18(width=args.width), images.batches(64 if args.small else 128, not args.small),
                      args.float_epochs)
    found["float"] = accuracy(net, tests)
    print(f"  {found['float']:.2%} of {len(images.test):,} test images\n")

    print("Stage 2, QFloat: the same parameters, integer arithmetic simulated")
    kind = "lsq" if args.learned else "observed"
    how = Quant(weight_bits=args.bits, activation_bits=args.bits, weight_quantizer=kind, activation_quantizer=kind)
    fm = intact.capture(net, images.train[:8])  # conv + batch norm (+ add) + ReLU become one operation
    plan = intact.plan(fm, target="onnxruntime", recipe=Recipe(default=how))
    print(f"  {len(list(net.modules())) - 1} modules are {len(fm.graph.nodes)} operations; "
          f"{plan.coverage.mac_share:.1%} of multiply-accumulates in integers, {len(plan.rejections)} stay in float")
    qfloat = intact.prepare(fm, plan)
    intact.calibrate(qfloat, images.calibration())
    found["calibrated"] = accuracy(qfloat, tests)
    print(f"  only calibrated: {found['calibrated']:.2%}")
    intact.train(qfloat, images.batches(64 if args.small else 128, not args.small), epochs=args.epochs, lr=args.lr,
                 distill=intact.Distill(weight=0.5))
    found["qfloat"] = accuracy(qfloat, tests)
    print(f"  trained for {args.epochs} epoch(s): {found['qfloat']:.2%}\n")

    print("Stage 3, Q: integers only")
    q = intact.convert(qfloat)
    found["q"] = accuracy(q, tests)
    differ, compared = codes_that_differ(qfloat, q, tests[:2])
    assert differ == 0, "QFloat and Q give the same codes at every edge"
    assert found["q"] == found["qfloat"], "so they have the same accuracy"
    found["codes_differ"] = differ
    args.out.mkdir(parents=True, exist_ok=True)
    path = intact.save(q, args.out / "resnet18.intact")
    print(f"  {found['q']:.2%}; {differ} of {compared:,} codes differ from QFloat")
    print(f"  {path}: {path.stat().st_size:,} bytes\n")
    print(f"Float {found['float']:.2%} -> QFloat {found['qfloat']:.2%} -> Q {found['q']:.2%}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
