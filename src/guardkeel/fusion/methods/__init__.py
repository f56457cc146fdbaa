"""One pure function a file: the same tensor of every model in, the fused tensor out."""
