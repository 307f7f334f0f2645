"""The integer kernels of LiteRT (TensorFlow Lite), operator by operator, as measured against its interpreter."""
