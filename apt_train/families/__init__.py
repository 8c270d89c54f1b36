"""What a checkpoint is made of, whichever family it belongs to."""
