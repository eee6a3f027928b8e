"""What learning, steering and serving cost."""
