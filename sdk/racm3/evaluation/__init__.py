"""Evaluation: figures that say whether retrieval helps, each with the interval that other draws would give."""
