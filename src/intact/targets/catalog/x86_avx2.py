"""ONNX Runtime on x86-64 with AVX2 and without VNNI.

Its kernels for unsigned activations and signed weights multiply and add neighbours with ``vpmaddubsw``, which saturates
the sum of two products at 16 bits: 255 * 127 twice is 64,770, and 32,767 comes out. So weights that could do so get
7 bits, and all else is as on other machines: no result depends on which of them runs the model.
"""

from __future__ import annotations

from dataclasses import replace

from intact.targets.catalog.onnxruntime import ONNXRUNTIME

__all__ = ["X86_AVX2"]

X86_AVX2 = replace(ONNXRUNTIME, name="x86_avx2", activation_bits=tuple(range(2, 9)),
                   arithmetic=replace(ONNXRUNTIME.arithmetic, name="x86_avx2", pair_bits=16))
