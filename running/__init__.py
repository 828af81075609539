"""What every script does around its work: flags and errors, devices and processes, files, pictures."""
