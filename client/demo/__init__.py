"""`fleetfit demo`: the whole job on one machine, with real data, real training and real measurements."""
