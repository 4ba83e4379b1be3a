"""LoRSA: Low-Rank Spectral Adaptation."""
