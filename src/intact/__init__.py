"""Intact: quantize PyTorch models; what you evaluate is what you ship, bit for bit."""
