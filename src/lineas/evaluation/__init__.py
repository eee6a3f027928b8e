"""What an intervention does and what it damages."""
