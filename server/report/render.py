"""`python -m fleetfit.server.report.render REPORT.json OUT.html`: one self-contained page."""
