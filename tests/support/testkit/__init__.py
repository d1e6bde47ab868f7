"""What several modules of the tests share and that is no fixture."""
