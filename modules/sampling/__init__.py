"""The mathematics of going from noise to picture. Values in, values out: no setting, no file, no progress bar."""
