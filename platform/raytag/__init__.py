"""Raytag: named entity recognition with LoRA+ adapters, trained, run and served on Ray."""

__version__ = "0.1.0"
