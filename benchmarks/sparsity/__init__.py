"""How small an intervention may be, how two of them compose, and where gates pay."""
