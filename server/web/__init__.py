"""Read-only pages for this machine: the list of jobs, and each job's report."""
