"""Decoders of transformers, cut into blocks: documents are scored and embedded by them. Its modules import torch."""
