"""RainFusion attention inside other programs, a file for each; none is needed to import these."""
