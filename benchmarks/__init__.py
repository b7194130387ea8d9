"""Measurements of this project beside others."""
