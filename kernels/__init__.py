"""Spectral-update operators."""
