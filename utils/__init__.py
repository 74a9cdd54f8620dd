"""The method, from features to anomaly maps, thresholds and metrics; its model and options."""
