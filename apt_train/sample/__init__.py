"""Pictures from a model as it stands, and how far it has left the prior."""
