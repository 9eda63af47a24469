"""What a job writes down about itself, and how that reaches the tracking store."""
