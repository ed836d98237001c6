"""What people read: tables of at most 80 columns, and figures as words."""
