"""`fleetfit selfproof`: what a device can show of itself without a server."""
