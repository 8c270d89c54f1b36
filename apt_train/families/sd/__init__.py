"""What a checkpoint consists of, whichever family it belongs to."""
