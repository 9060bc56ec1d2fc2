"""Torch networks: `build` (blocks to modules), `weights` (files and timm), `foreign` (the cost of any timm model)."""
