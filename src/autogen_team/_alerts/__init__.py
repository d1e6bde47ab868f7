"""The alerts engine: the desktop, remote channels, delivery."""
