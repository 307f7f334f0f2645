"""Integer arithmetic written out in NumPy: the specification that kernels, C and runtimes are compared with."""
