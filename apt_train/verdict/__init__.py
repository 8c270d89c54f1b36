"""What a run's log means, in numbers and in words."""
