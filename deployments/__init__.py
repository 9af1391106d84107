"""What prefect.yaml cannot say: the demo, bringing everything up, and the example settings."""
