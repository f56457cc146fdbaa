"""What a verb will take for a model, rows and hardware that need not be there: memory, time and cost."""
