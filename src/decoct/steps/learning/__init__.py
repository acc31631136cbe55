"""What steps that train share."""
