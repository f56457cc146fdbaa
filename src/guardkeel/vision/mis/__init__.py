"""Requests of several pictures that are harmless one by one and dangerous together (MIS, arXiv:2501.18533)."""
