"""What the demo prints, and the interventions that come with the package."""
