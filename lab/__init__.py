"""Experiments that produce the bundled base model and the evidence; they may import frisket, never the reverse."""
