"""Evaluation: figures that say whether retrieval helps."""
