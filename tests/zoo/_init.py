"""Deterministic weights that keep every network of the zoo in a healthy range.

Untrained networks make poor subjects for quantization: default batch norms are identities and
activations of a deep network fade or explode. So weights are drawn at random, batch norms get
statistics that are far from the identity, and one forward pass scales every layer to unit variance
(Mishkin and Matas, "All you need is a good init", ICLR 2016).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def build_seeded(
    build: Callable[[], nn.Module], input_shape: tuple[int, ...], seed: int = 0
) -> nn.Module:
    """Build a network in evaluation mode with reproducible weights.

    The global random state is left as it was.

    Args:
        build: makes the network.
        input_shape: shape of one input, without the batch dimension.
        seed: seed of weights, biases and batch-norm statistics.

    Returns:
        The network, whose layers have outputs of about unit variance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
        with torch.no_grad():
            _draw_parameters(model)
            _scale_to_unit_variance(model, smooth_noise(4, input_shape))
    return model


def smooth_noise(batch: int, shape: tuple[int, ...]) -> Tensor:
    """Draw inputs of unit variance; images are smooth, so that pooling does not erase them.

    Args:
        batch: number of inputs.
        shape: shape of one input: `(features,)`, `(channels, time)` or `(channels, height, width)`.

    Returns:
        A float32 tensor of shape `(batch, *shape)`.
    """
    noise = torch.randn(batch, *shape)
    if len(shape) != 3:
        return noise
    coarse = torch.randn(batch, shape[0], 4, 4)
    smooth = F.interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=True)
    mixed = smooth + 0.25 * noise
    return mixed / mixed.std()


def _draw_parameters(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (*_CONVS, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, (*_NORMS, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_bias, std=0.1)
        if isinstance(module, _NORMS):
            module.get_buffer("running_mean").normal_(0.0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)


def _scale_to_unit_variance(model: nn.Module, x: Tensor) -> None:
    layers = [m for m in model.modules() if isinstance(m, (*_CONVS, nn.Linear))]
    handles = [layer.register_forward_hook(_rescale) for layer in layers]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()


def _rescale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Divide a layer by the power of two nearest to its output's standard deviation."""
    # A power of two scales exactly, so that the last bits of a sum, which depend on the number of
    # threads, do not reach the weights.
    factor = 2.0 ** -round(math.log2(output.std().item()))
    for parameter in layer.parameters(recurse=False):
        parameter.mul_(factor)
    return output * factor
