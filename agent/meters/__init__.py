"""What tells how much energy this device uses: meters behind one small interface, found through entry points."""
