"""Runs into records: guardkeel's own run directories, and results of inspect_ai, lm-eval, geh and GuardBench."""
