"""What harmless fine-tuning does to a guard under every method: a grid of tune and audit runs, and one table."""
