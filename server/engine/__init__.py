"""The job engine: planning, compression children, leases, and what follows from what. All its state is in the database."""
