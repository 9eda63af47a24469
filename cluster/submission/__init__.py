"""Jobs sent to a running cluster: packed, checked, followed."""
