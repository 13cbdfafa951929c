"""What repairs a compressed network."""
