"""Who is who: the fleet's own certificate authority, one-time enrolment tokens, people's tokens."""
