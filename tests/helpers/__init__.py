"""Models, pipelines and inputs that several tests share."""
