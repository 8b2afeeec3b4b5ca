"""Training speed and memory, side by side with TRL and with plain transformers and PEFT."""
