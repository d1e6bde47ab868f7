"""The alerts engine: desktop, remote channels, delivery."""
