"""The costs of learning, steering and serving."""
