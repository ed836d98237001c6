"""From a job's facts to a choice: limits, objective, ties, and the words for them. Pure."""
