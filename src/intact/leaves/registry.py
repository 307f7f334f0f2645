"""Which layer becomes which leaf."""

from __future__ import annotations

from torch import nn

from intact.leaves.attention import QAttention
from intact.leaves.base import Leaf
from intact.leaves.conv import QConv
from intact.leaves.embedding import QEmbedding, QEmbeddingBag
from intact.leaves.linear import QLinear
from intact.leaves.recurrent import QRecurrent, QRecurrentCell

__all__ = ["EMBEDDINGS", "USUAL", "leaf_class"]

_LEAVES: dict[type[nn.Module], type[Leaf]] = {
    nn.Linear: QLinear, nn.Conv1d: QConv, nn.Conv2d: QConv, nn.Embedding: QEmbedding, nn.EmbeddingBag: QEmbeddingBag,
    nn.LSTM: QRecurrent, nn.GRU: QRecurrent, nn.RNN: QRecurrent,
    nn.LSTMCell: QRecurrentCell, nn.GRUCell: QRecurrentCell, nn.RNNCell: QRecurrentCell,
    nn.MultiheadAttention: QAttention,
}
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class _TransposedKind(type):
    """``isinstance`` for a class of another package that need not be installed."""

    def __instancecheck__(cls, module: object) -> bool:
        kind = type(module)
        return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class HuggingFaceConv1D(nn.Module, metaclass=_TransposedKind):
    """Stands for ``transformers.pytorch_utils.Conv1D``: a Linear with its weight stored (in, out)."""


#: the layers that are quantized where no others are named
USUAL: frozenset[type[nn.Module]] = frozenset(_LEAVES) - {nn.Conv1d, nn.Conv2d} | {HuggingFaceConv1D}


def leaf_class(module: nn.Module) -> type[Leaf] | None:
    """What can stand in the place of a module; None if nothing can.

    A subclass, or a module whose ``forward`` was replaced, counts as the layer only if it runs the layer's own.

    >>> leaf_class(nn.Linear(2, 2)).__name__, leaf_class(nn.ReLU())
    ('QLinear', None)
    """
    if "forward" in vars(module):
        return None
    if isinstance(module, HuggingFaceConv1D):
        return QLinear
    for kind, leaf in _LEAVES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return leaf
    return None
