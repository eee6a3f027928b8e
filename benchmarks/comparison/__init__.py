"""Methods and recipes against each other on texts, by effect and damage."""
