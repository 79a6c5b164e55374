"""Decoders of transformers, cut into blocks, that score and embed documents. Most of its modules import torch."""
