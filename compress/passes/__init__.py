"""The passes that come with fleetfit: one declaration per file, its work in a module of its own."""
