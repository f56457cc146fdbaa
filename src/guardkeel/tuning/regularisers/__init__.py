"""Terms that keep a guard's safety while it is fine-tuned. One file each."""
