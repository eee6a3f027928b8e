"""Tools that made what comes with the package: the world of the embedded image model, and its training."""
