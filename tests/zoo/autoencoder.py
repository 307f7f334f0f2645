"""Anomaly detection by reconstruction."""

from itertools import pairwise

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """MLP autoencoder (Koizumi et al., "DCASE2020 Challenge Task 2", baseline system).

    Args:
        features: size of the input and of its reconstruction.
        hidden: features of the hidden layers.
        code: features of the bottleneck.
        depth: hidden layers on each side of the bottleneck.
    """

    def __init__(
        self, features: int = 640, hidden: int = 128, code: int = 8, depth: int = 4
    ) -> None:
        super().__init__()
        widths = [features] + [hidden] * depth + [code]
        self.encoder = nn.Sequential(*_layers(widths))
        self.decoder = nn.Sequential(
            *_layers([code] + [hidden] * depth), nn.Linear(hidden, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder(self.encoder(x))
        return x


def _layers(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
    return layers
