"""Vision-language adaptation, measured while it happens, with its cures side by side."""
