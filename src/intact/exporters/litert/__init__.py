"""Files for LiteRT (TensorFlow Lite)."""
