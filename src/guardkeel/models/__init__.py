"""Models: checks, loading, adapters, tiny test models, GGUF conversion and the embedded guard's base."""
