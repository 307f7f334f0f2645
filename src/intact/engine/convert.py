"""QFloatModel -> QModel."""

from __future__ import annotations

from typing import Any

import torch

from intact.engine.qmodel import QModel
from intact.errors import CalibrationError
from intact.planning import macs_of
from intact.simulation import QFloatModel

__all__ = ["convert"]


def convert(qfloat: QFloatModel) -> QModel:
    """The integer model that gives exactly the codes of ``qfloat`` in evaluation mode.

    Raises:
        CalibrationError: if the model is not calibrated.

    >>> import torch
    >>> from intact.calibration import calibrate
    >>> from intact.graph import capture
    >>> from intact.planning import plan
    >>> from intact.simulation import prepare
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    >>> x = torch.randn(8, 3)
    >>> qfloat = calibrate(prepare(fm, plan(fm)), [x])
    >>> torch.equal(convert(qfloat)(x), qfloat(x))
    True
    """
    if not isinstance(qfloat, QFloatModel):
        raise CalibrationError("convert takes a calibrated QFloat model", got=type(qfloat).__name__,
                               fix="call intact.prepare and intact.calibrate first")
    if qfloat.training:
        raise CalibrationError("the model is in training mode", fix="call qfloat.eval() before convert")
    if qfloat.calibrated and not qfloat.exact:
        off = [n for n, q in (*qfloat.edge_quantizers.items(), *qfloat.weight_quantizers.items()) if not q.enabled]
        raise CalibrationError("fake quantization is switched off", where=", ".join(off[:5]),
                               got=f"{len(off)} quantizers", fix="call intact.enable_fake_quant(qfloat)")
    bound, model = qfloat.bound, qfloat.float_model
    kept = {name for node in model.graph if node.name not in bound.kernels for name in node.params.values()}
    float_params = {k: v.detach().cpu().clone() for k, v in model.params.items() if k in kept}
    bindings = {name: kernel.binding for name, kernel in bound.kernels.items()}
    return QModel(model.graph, model.signature, qfloat.plan.target, bindings, bound.qparams, float_params,
                  model.opaque, _info(qfloat), qfloat.samples or model.example)


def _info(qfloat: QFloatModel) -> dict[str, Any]:
    plan, cover = qfloat.plan, qfloat.plan.coverage
    return {
        "plan": str(plan),
        "macs": {n.name: m for n in plan.graph if (m := macs_of(n, qfloat.float_model))},
        "kernels": {n: d.kernel for n, d in plan.decisions.items() if d.integer},
        "rejections": [[r.name, r.path, r.op, r.reason] for r in plan.rejections],
        "coverage": {"macs": cover.macs, "integer_macs": cover.integer_macs, "weight_bytes": cover.weight_bytes,
                     "integer_weight_bytes": cover.integer_weight_bytes},
        "equalization": {k: list(v) for k, v in qfloat.float_model.equalization.items()},
        "smoothing": {k: {n: list(s) for n, s in v.items()} for k, v in qfloat.float_model.smoothing.items()},
        "notes": [list(n) for n in (*plan.notes, *qfloat.bound.notes)],
        "versions": {"torch": torch.__version__.split("+")[0]},
    }
