"""From a module to a canonical float graph, and the transformations of that graph."""

from intact.graph.capture import capture, capture_program
from intact.graph.float_model import FloatModel
from intact.graph.hints import Hint, Hinted
from intact.graph.ir import MAC_OPS, PASSIVE_OPS, Graph, Node

__all__ = ["MAC_OPS", "PASSIVE_OPS", "FloatModel", "Graph", "Hint", "Hinted", "Node", "capture", "capture_program"]
