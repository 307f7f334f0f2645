"""A one-stage detector whose output joins quantities of very different ranges."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIDES = (8, 16)


def _conv(in_channels: int, channels: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.1, inplace=True),
    )


class Backbone(nn.Module):
    """Features at strides 8 and 16, the coarse merged into the fine (Lin et al., CVPR 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, width, 2), _conv(width, 2 * width, 2))
        self.stage3 = nn.Sequential(_conv(2 * width, 4 * width, 2), _conv(4 * width, 4 * width))
        self.stage4 = nn.Sequential(_conv(4 * width, 8 * width, 2), _conv(8 * width, 8 * width))
        self.reduce = _conv(8 * width, 4 * width, kernel=1)
        self.merge = _conv(8 * width, 4 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stage3(self.stem(x))
        coarse = self.reduce(self.stage4(fine))
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.merge(torch.cat((fine, up), dim=1)), coarse


class Detector(nn.Module):
    """Anchor-free detector in the manner of YOLO (Redmon et al., CVPR 2016).

    The output has shape `(batch, 4 + num_classes, cells)`. Its first four rows are the boxes, in
    pixels from 0 to `box_range`; the others are scores from 0 to 1. A single scale for the joined
    tensor leaves one code or two to the scores.

    Args:
        num_classes: number of scores of each cell.
        width: channels of the first convolution.
        box_range: largest coordinate.
    """

    def __init__(self, num_classes: int = 80, width: int = 16, box_range: float = 640.0) -> None:
        super().__init__()
        self.box_range = box_range
        self.backbone = Backbone(width)
        self.box = nn.Sequential(_conv(4 * width, 4 * width), nn.Conv2d(4 * width, 4, 1))
        self.cls = nn.Sequential(_conv(4 * width, 4 * width), nn.Conv2d(4 * width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        boxes = torch.cat([self.box(f).flatten(2) for f in features], dim=2)
        scores = torch.cat([self.cls(f).flatten(2) for f in features], dim=2)
        return torch.cat([boxes.sigmoid() * self.box_range, scores.sigmoid()], dim=1)


class DetectorFCOS(nn.Module):
    """Detector that decodes distances to the sides of the box (Tian et al., "FCOS", ICCV 2019).

    The output has shape `(batch, cells, 4 + num_classes)`: corners `x1, y1, x2, y2` in pixels,
    clamped to the image, then the scores.

    Args:
        num_classes: number of scores of each cell.
        width: channels of the first convolution.
        size: height and width of the input, a multiple of 16.
        box_range: largest coordinate.
    """

    centers: Tensor
    strides: Tensor

    def __init__(
        self,
        num_classes: int = 80,
        width: int = 16,
        size: int = 640,
        box_range: float = 640.0,
    ) -> None:
        super().__init__()
        self.box_range = box_range
        self.backbone = Backbone(width)
        self.box = nn.Conv2d(4 * width, 4, 3, padding=1)
        self.cls = nn.Conv2d(4 * width, num_classes, 3, padding=1)
        centers = [_centers(size // stride, box_range) for stride in _STRIDES]
        strides = [torch.full((len(c), 1), c[0, 0].item() * 2) for c in centers]
        self.register_buffer("centers", torch.cat(centers), persistent=False)
        self.register_buffer("strides", torch.cat(strides), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        distances = F.relu(torch.cat([self.box(f).flatten(2) for f in features], dim=2))
        scores = torch.cat([self.cls(f).flatten(2) for f in features], dim=2)
        left_top, right_bottom = (distances.transpose(1, 2) * self.strides).chunk(2, dim=-1)
        boxes = torch.cat([self.centers - left_top, self.centers + right_bottom], dim=-1)
        boxes = boxes.clamp(min=0.0, max=self.box_range)
        return torch.cat([boxes, scores.transpose(1, 2).sigmoid()], dim=-1)


class DetectorDict(Detector):
    """The detector with its two outputs apart, as a dictionary of `boxes` and `scores`."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        features = self.backbone(x)
        boxes = torch.cat([self.box(f).flatten(2) for f in features], dim=2)
        scores = torch.cat([self.cls(f).flatten(2) for f in features], dim=2)
        return {"boxes": torch.sigmoid(boxes) * self.box_range, "scores": torch.sigmoid(scores)}


def _centers(cells: int, box_range: float) -> Tensor:
    """Return the centers `(x, y)` of a square grid, row by row, shape `(cells * cells, 2)`."""
    ticks = (torch.arange(cells, dtype=torch.float32) + 0.5) * (box_range / cells)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
