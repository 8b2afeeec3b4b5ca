"""What a person sees: ledger, mask view, curves, model card. Reads values and artifacts only."""
