"""Evaluation of samples: feature spaces, distances, likelihood, the report."""
