"""Backbones and the auxiliary heads on their stages."""
