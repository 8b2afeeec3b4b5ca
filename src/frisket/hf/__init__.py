"""The only folder that imports transformers: loading, the attention seam, output heads."""
