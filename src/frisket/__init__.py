"""Fine-tune language models under four explicit masks."""

__version__ = "0.1.0"
