"""Finding the blocks of a model and capturing what they put out while it scores."""
