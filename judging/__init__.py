"""What measures a run: features and distances, tables, the report page, the baseline VAE."""
