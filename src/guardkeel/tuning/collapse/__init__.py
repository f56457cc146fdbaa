"""What benign fine-tuning does to a guard under every method: a grid of tune and audit runs, and what follows from it."""
