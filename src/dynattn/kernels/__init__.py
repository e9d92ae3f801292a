"""Fast kernels, one folder a device."""
