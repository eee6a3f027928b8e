"""Files: written whole or not at all, and only over what lineas wrote itself."""
