"""Repair by weights alone: several checkpoints in, one out."""
