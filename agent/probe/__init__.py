"""What a device is, and the state it is in, read from /proc, /sys, the device tree and psutil."""
