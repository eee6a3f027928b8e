"""The output of the demo, and the interventions that come with the package."""
