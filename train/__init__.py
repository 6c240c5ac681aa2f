"""Labels to checkpoints. Training speaks to the rest through checkpoint files only."""
