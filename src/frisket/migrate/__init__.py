"""Configurations of other tools become recipes; the tables also answer their keys in a recipe."""
