"""Fine-tuning guards."""
