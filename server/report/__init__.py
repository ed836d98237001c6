"""From measurements to a report: summaries of raw samples, the report object, its page."""
