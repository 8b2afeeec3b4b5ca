"""The version, apart, so that every layer can name it without importing the package above it."""

__version__ = "0.1.0"
