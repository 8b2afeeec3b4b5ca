"""Which tokens teach: policies, predictions, the summed loss."""
