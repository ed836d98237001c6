"""Getting agents onto devices: wheels that are kept here, the installer made from them, the listener that serves both."""
