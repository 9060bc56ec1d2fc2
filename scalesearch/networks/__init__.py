"""Torch networks: `build` (blocks to modules), `weights` (files), `pretrained` (what to start from), `foreign` (any timm model's cost)."""
